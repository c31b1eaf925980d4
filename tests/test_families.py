"""The ImageNet family: small trees in each published layout, with real image files; labels, masks, and every error."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_vit, real_folder
from PIL import Image

from nslib.config import DataConfig
from nslib.data.corruptions import CORRUPTIONS
from nslib.data.cue_conflict import COARSE, CueConflict
from nslib.data.families import FAMILIES, corruption_parts, family_labels, open_family
from nslib.data.folders import label_of, wnids
from nslib.data.geometry import CLASSES
from nslib.data.shapes import SPLITS, render
from nslib.data.source import open_source
from nslib.models import load_model

# Two classes of ImageNet-A alone, two of ImageNet-R alone, and two of neither, by their places among the 1,000.
ONLY_A = sorted(set(label_of("imagenet-a").values()) - set(label_of("imagenet-r").values()))[:2]
ONLY_R = sorted(set(label_of("imagenet-r").values()) - set(label_of("imagenet-a").values()))[:2]
NEITHER = [0, 999]


@pytest.fixture(scope="module")
def vit():
    return make_vit(num_classes=1000)


def picture(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (36, 40), (level,) * 3).save(path)


def by_wnid(folder: Path, labels, suffix: str = "JPEG") -> Path:
    """One flat image a class, its level the class's place in `labels`."""
    for level, label in enumerate(labels):
        picture(folder / wnids()[label] / f"image.{suffix}", level)
    return folder


def numbered(folder: Path, labels) -> Path:
    for level, label in enumerate(labels):
        picture(folder / str(label) / "image.png", level)
    return folder


def listed(folder: Path, labels, table: str | None = None) -> Path:
    """DAmageNet: images that lie flat, and lines `name label`."""
    lines = []
    for level, label in enumerate(labels):
        picture(folder / f"ILSVRC2012_val_{level + 1:08}.png", level)
        lines.append(f"ILSVRC2012_val_{level + 1:08}.png {label}")
    (folder / (table or "val_damagenet.txt")).write_text("\n".join(lines) + "\n")
    return folder


def cue_conflict(folder: Path, names=("cat1-dog2.png", "dog1-cat3.png", "car10-oven1.png")) -> Path:
    """Each coarse class consists of the labels 2 i and 2 i + 1; the level of a picture is its number."""
    for level, name in enumerate(names):
        picture(folder / name.partition("-")[0].rstrip("0123456789") / name, level)
    table = {name: [2 * i, 2 * i + 1] for i, name in enumerate(COARSE)}
    (folder / "classes.json").write_text(json.dumps(table))
    return folder


def label_by_level(images) -> list[int]:
    """Labels in the order of the pictures' levels."""
    pixels, labels = images.load(range(len(images)))
    return labels[(pixels[:, 0, 0, 0] * 255).round().long().argsort()].tolist()


# Layouts and labels


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("a", ONLY_A),
        ("r", ONLY_R),
        ("sketch", NEITHER + ONLY_A),
        ("stylized", NEITHER),
    ],
)
def test_class_folders(tmp_path, vit, name, labels):
    images = open_family(name, by_wnid(tmp_path, labels, "png"), vit)
    assert label_by_level(images) == labels


def test_imagenet_v2_is_numbered_not_sorted_by_name(tmp_path, vit):
    images = open_family("v2", numbered(tmp_path, [10, 9, 0, 999]), vit)
    assert label_by_level(images) == [10, 9, 0, 999]


def test_imagenet_c_has_parts(tmp_path, vit):
    by_wnid(tmp_path / "fog" / "3", [5, 4], "png")
    by_wnid(tmp_path / "fog" / "1", [7], "png")
    by_wnid(tmp_path / "gaussian_noise" / "5", [7], "png")
    by_wnid(tmp_path / "spatter" / "1", [7], "png")  # published as extra
    assert corruption_parts(tmp_path) == ["gaussian_noise/5", "fog/1", "fog/3"]
    assert label_by_level(open_family("c", tmp_path, vit, part="fog/3")) == [5, 4]


@pytest.mark.parametrize("place", ["val_damagenet.txt", "../val_damagenet.txt"])
def test_damagenet_lies_flat_with_a_label_file(tmp_path, vit, place):
    folder = listed(tmp_path / "images", [65, 970, 1], place)
    assert label_by_level(open_family("damagenet", folder, vit)) == [65, 970, 1]
    (folder / "ILSVRC2012_val_00000002.png").unlink()  # any subset will do
    assert sorted(open_family("damagenet", folder, vit).load(range(2)).labels.tolist()) == [1, 65]


def test_masks_are_the_classes_of_a_and_r_alone():
    for name in FAMILIES:
        labels = family_labels(name)
        if name in ("a", "r"):
            assert {wnids()[label] for label in labels} == set(wnids(f"imagenet-{name}"))
            assert list(labels) == sorted(labels)
        else:
            assert labels is None


@pytest.mark.parametrize(("name", "kept"), [("stylized", True), ("c", True), ("sketch", False), ("a", False)])
def test_what_is_published_at_224_is_not_resized(tmp_path, name, kept):
    picture_ = Image.effect_noise((224, 224), 60).convert("RGB")
    home = tmp_path / ("fog/3" if name == "c" else "") / wnids()[ONLY_A[0]]
    home.mkdir(parents=True)
    picture_.save(home / "image.png")
    images = open_family(name, tmp_path, make_vit(img_size=224, num_classes=1000), part="fog/3" if name == "c" else "")
    pixels = images.load([0]).images[0].mul(255).round().byte()
    assert (pixels.permute(1, 2, 0).numpy().tobytes() == picture_.tobytes()) == kept


# The wrong folder


@pytest.mark.parametrize(
    ("name", "build", "labels", "told"),
    [
        ("a", numbered, [0, 5], r"2 of 2 folders in .* are no class of ImageNet-A \(0, 5\).*like ImageNet-V2$"),
        ("v2", by_wnid, ONLY_A, r"2 of 2 folders .* no class of ImageNet-V2 \(n\d+, n\d+\).*looks like ImageNet-A$"),
        ("a", by_wnid, ONLY_R, r"2 of 2 folders in .* ImageNet-A .*looks like ImageNet-R$"),
        ("r", by_wnid, ONLY_A, r"2 of 2 folders in .* ImageNet-R .*looks like ImageNet-A$"),
        ("a", by_wnid, [*ONLY_A, 0, 999], r"2 of 4 folders in .* looks like a data set of all 1,000 classes"),
        ("sketch", numbered, [3], r"1 of 1 folders .* ImageNet-Sketch.*: set data.sketch, .*looks like ImageNet-V2$"),
        ("v2", by_wnid, [ONLY_A[0], ONLY_R[0], 0], r"looks like a data set of all 1,000 classes"),
        ("r", listed, [1, 2], r"no images in .*<wnid>/\*\.jpg of 200 classes.*looks like DAmageNet$"),
        ("damagenet", by_wnid, ONLY_R, r"no images in .*val_damagenet.txt in the folder of DAm.*like ImageNet-R$"),
        ("a", cue_conflict, ("cat1-dog1.png",), r"ImageNet-A \(cat\).*looks like cue-conflict$"),
    ],
)  # fmt: skip
def test_folder_of_another_family(tmp_path, vit, name, build, labels, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        open_family(name, build(tmp_path, labels), vit)


def test_folder_of_imagenet_c_as_another(tmp_path, vit):
    by_wnid(tmp_path / "fog" / "3", [1])
    with pytest.raises(ValueError, match=r"are no class of ImageNet-V2 \(fog\).*looks like ImageNet-C$"):
        open_family("v2", tmp_path, vit)


def test_root_of_a_tree_as_a_family(tmp_path, vit):
    by_wnid(tmp_path / "val", [1])
    with pytest.raises(
        ValueError, match=r"no class of Stylized-ImageNet \(val\).*looks like the root of a data set, with train or"
    ):
        open_family("stylized", tmp_path, vit)


def test_folder_that_resembles_nothing(tmp_path, vit):
    picture(tmp_path / "goldfish" / "image.png")
    with pytest.raises(ValueError, match=r"ImageNet-Sketch \(goldfish\): expected .*<data.root>/sketch$"):
        open_family("sketch", tmp_path, vit)


@pytest.mark.parametrize("name", ["a", "v2", "c", "damagenet"])
def test_missing_folder(tmp_path, vit, name):
    part = "fog/3" if name == "c" else ""
    with pytest.raises(FileNotFoundError, match=rf"no folder .*/gone: expected .*set data.{name}, or put it at <data"):
        open_family(name, tmp_path / "gone", vit, part=part)


def test_folder_without_images(tmp_path, vit):
    (tmp_path / wnids()[ONLY_A[0]]).mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"no images in .*: expected <wnid>/\*.jpg of 200 classes .*imagenet-a$"
    ):
        open_family("a", tmp_path, vit)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("fgo/3", "no corruption 'fgo': did you mean fog"),
        ("blur/3", "no corruption 'blur': did you mean .*_blur"),
        ("fog/6", "severity must be one of 1, 2, 3, 4, 5, got '6': ask for a part such as fog/3"),
        ("fog", "severity must be one of 1, 2, 3, 4, 5, got ''"),
    ],
)
def test_misspelt_part(tmp_path, vit, part, told):
    by_wnid(tmp_path / "fog" / "3", [1])
    with pytest.raises(ValueError, match=told):
        open_family("c", tmp_path, vit, part=part)


def test_misspelt_corruption_on_disk(tmp_path, vit):
    by_wnid(tmp_path / "fog" / "3", [1])
    (tmp_path / "motion-blur").mkdir()
    with pytest.raises(ValueError, match=r"no corruption 'motion-blur' in .*: did you mean motion_blur"):
        open_family("c", tmp_path, vit, part="fog/3")


@pytest.mark.parametrize(
    ("severities", "there"),
    [(0, r"0 \(none\)"), (2, r"2 \(snow/1, snow/2\)"), (5, r"5 \(snow/1, snow/2, snow/3 \.\.\.\)")],
)
def test_part_that_is_not_there(tmp_path, vit, severities, there):
    for severity in range(severities):
        by_wnid(tmp_path / "snow" / str(severity + 1), [1])
    told = rf"no folder .*/fog/3, of the 75 parts there are {there}: expected <corruption>/<1 to 5>/<wnid>"
    with pytest.raises(FileNotFoundError, match=told):
        open_family("c", tmp_path, vit, part="fog/3")


def test_damagenet_without_label_file(tmp_path, vit):
    picture(tmp_path / "images" / "ILSVRC2012_val_00000001.png")
    with pytest.raises(
        FileNotFoundError, match=r"no val_damagenet.txt in .*/images or .*: put the published label file"
    ):
        open_family("damagenet", tmp_path / "images", vit)


@pytest.mark.parametrize("line", ["ILSVRC2012_val_00000003.png", "x.png 1000", "x.png cat", "x.png -1", "7"])
def test_damagenet_with_a_wrong_line(tmp_path, vit, line):
    folder = listed(tmp_path, [1, 2])
    with (folder / "val_damagenet.txt").open("a") as table:
        table.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"line 4 of .*val_damagenet.txt must be a name and a label .*got '{line}'"):
        open_family("damagenet", folder, vit)


def test_damagenet_with_images_of_no_label(tmp_path, vit):
    folder = listed(tmp_path, [1, 2])
    picture(folder / "ILSVRC2012_val_00000009.png")
    with pytest.raises(
        ValueError, match=r"1 of 3 images in .* no line in .*\(ILSVRC2012_val_00000009.png\): use the pub"
    ):
        open_family("damagenet", folder, vit)


# Cue conflict


def test_cue_conflict_labels_tell_shape_and_texture(tmp_path, vit):
    names = ("cat1-dog2.png", "dog1-cat3.png", "car10-oven1.png", "cat4-cat2.png")
    images = CueConflict(cue_conflict(tmp_path, names), vit)
    cat, dog, car, oven = (COARSE.index(c) for c in ("cat", "dog", "car", "oven"))
    assert label_by_level(images) == [16 * cat + dog, 16 * dog + cat, 16 * car + oven]
    assert images.left_out == 1  # a cat with the texture of a cat


def test_cue_conflict_decides_by_mean_probability(tmp_path, vit):
    images = CueConflict(cue_conflict(tmp_path), vit)
    images.members = [[0, 1, 2], [3], *[[i] for i in range(10, 24)]]
    probabilities = torch.full((2, 1000), 1e-6)
    probabilities[0, [0, 1, 2]], probabilities[0, 3] = 0.2, 0.3  # sum .6 against .3, mean .2 against .3
    probabilities[1, [0, 1, 2]], probabilities[1, 3] = torch.tensor([0.8, 0.05, 0.05]), 0.1  # largest .8, mean .3
    assert images.decide(probabilities.log()).tolist() == [1, 0]


def test_cue_conflict_follows_one_cue_or_none(tmp_path, vit):
    images = CueConflict(cue_conflict(tmp_path), vit)
    logits = torch.zeros(4, 1000)
    for row, decided in enumerate((7, 10, 3, 9)):
        logits[row, images.members[decided]] = 20.0
    labels = torch.tensor([16 * 7 + 10, 16 * 7 + 10, 16 * 7 + 10, 16 * 9 + 1])
    shape, texture = images.follows(logits, labels)
    assert shape.tolist() == [True, False, False, True]
    assert texture.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("oven"), "must name the 16 classes airplane, .*; differing: oven"),
        (lambda t: t.update(ship=[1]), "must name the 16 classes .*; differing: ship"),
        (lambda t: t.update(oven=[]), "oven in .* must be a list of labels below 1000, the classes of .*got \\[\\]"),
        (lambda t: t.update(oven=7), "oven in .* must be a list of labels below 1000, .*got 7"),
        (lambda t: t.update(oven=[1000]), "oven in .* must be a list of labels below 1000, .*got \\[1000\\]"),
        (lambda t: t.update(oven=["n1"]), "oven in .* must be a list of labels below 1000"),
    ],
)
def test_cue_conflict_classes_that_do_not_match(tmp_path, vit, change, told):
    table = cue_conflict(tmp_path) / "classes.json"
    members = json.loads(table.read_text())
    change(members)
    table.write_text(json.dumps(members))
    with pytest.raises(ValueError, match=told):
        CueConflict(tmp_path, vit)


@pytest.mark.parametrize(("text", "told"), [("{", "is no JSON"), ("[1]", "must name the 16 .*; differing: list")])
def test_cue_conflict_classes_that_are_no_table(tmp_path, vit, text, told):
    (cue_conflict(tmp_path) / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=told):
        CueConflict(tmp_path, vit)


def test_cue_conflict_missing_pieces(tmp_path, vit):
    with pytest.raises(FileNotFoundError, match=r"no folder .*/gone: expected .*: set data.cue_conflict"):
        CueConflict(tmp_path / "gone", vit)
    folder = cue_conflict(tmp_path / "images", ("cat1-cat2.png",))
    with pytest.raises(FileNotFoundError, match=r"no images in .*: expected <shape>"):
        CueConflict(folder, vit)
    (folder / "classes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*classes.json: it gives the labels of each of airplane"):
        CueConflict(folder, vit)


@pytest.mark.parametrize("name", ["cat/cat1.png", "cat/cat1-ship2.png", "cat/dog1-cat2.png", "ship/ship1-cat1.png"])
def test_cue_conflict_names_that_tell_no_cue(tmp_path, vit, name):
    picture(cue_conflict(tmp_path) / name)
    with pytest.raises(ValueError, match=rf"{name} must lie in the folder of its shape and name two of 16 classes"):
        CueConflict(tmp_path, vit)


@pytest.mark.real
@pytest.mark.slow
def test_cue_conflict_of_a_pretrained_vit():
    model = load_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", real_folder("NSLIB_WEIGHTS"))
    source = open_source(DataConfig(kind="folder", root=str(real_folder("NSLIB_IMAGENET"))), model)
    images = source.open("cue_conflict")
    pixels, labels = source.take("cue_conflict", source.count("cue_conflict"))
    with torch.inference_mode():
        shape, texture = images.follows(torch.cat([model(x) for x in pixels.split(40)]), labels)
    assert (len(shape), images.left_out) == (320, 0)
    assert shape.sum().item() == pytest.approx(0.169 * 320, abs=2)
    assert texture.sum().item() == pytest.approx(0.428 * 320, abs=2)


# What an evaluation asks


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """A root with train, val, and every family under its customary name."""
    root = tmp_path_factory.mktemp("imagenet")
    for split in ("train", "val"):
        by_wnid(root / split, [*NEITHER, *ONLY_A, ONLY_R[0]])
    by_wnid(root / "imagenet-a", ONLY_A)
    by_wnid(root / "imagenet-r", ONLY_R)
    numbered(root / "imagenetv2", [8])
    by_wnid(root / "sketch", NEITHER)
    by_wnid(root / "stylized", NEITHER)
    by_wnid(root / "imagenet-c" / "fog" / "3", NEITHER)
    listed(root / "damagenet", [65, 970])
    cue_conflict(root / "cue-conflict")
    return root


COUNTS = {
    "train": 5, "val": 5, "val:a": 2, "val:r": 1, "a": 2, "r": 2, "v2": 1, "sketch": 2, "stylized": 2, "c/fog/3": 2,
    "damagenet": 2, "cue_conflict": 3,
}  # fmt: skip


def folder_source(root, vit, **paths):
    return open_source(DataConfig(kind="folder", root=str(root), **{k: str(v) for k, v in paths.items()}), vit)


def test_every_split_is_found_under_the_root(family, vit):
    source = folder_source(family, vit)
    for split, n in COUNTS.items():
        assert (split, source.missing(split), source.count(split)) == (split, "", n)
        assert len(source.take(split, n).labels) == n
        assert source.open(split) is source.open(split)  # listed once
    with pytest.raises(ValueError, match="holds 1 images, asked for 0 to 2: ask for fewer"):
        source.take("v2", 2)


def test_clean_images_of_the_classes_of_a_and_r(family, vit):
    source = folder_source(family, vit)
    assert sorted(source.take("val:a", 2).labels.tolist()) == ONLY_A
    assert source.take("val:r", 1).labels.tolist() == ONLY_R[:1]


def test_classes_are_those_that_may_be_answered(family, vit):
    source = folder_source(family, vit)
    for split in COUNTS:
        classes = source.classes(split)
        if split in ("a", "r", "val:a", "val:r"):
            assert classes.dtype == torch.int64
            assert tuple(classes.tolist()) == family_labels(split[-1])
        else:
            assert classes is None


def test_own_setting_goes_before_the_customary_name(family, vit, tmp_path):
    source = folder_source(family, vit, v2=numbered(tmp_path / "elsewhere", [3, 4, 5]))
    assert source.count("v2") == 3
    assert folder_source(family, vit, v2=tmp_path / "gone").missing("v2").startswith(f"no folder {tmp_path}/gone")


def test_reasons_for_what_is_missing(tmp_path, vit):
    by_wnid(tmp_path / "val", NEITHER)
    by_wnid(tmp_path / "imagenet-r", ONLY_A)
    source = folder_source(tmp_path, vit)
    assert source.missing("val") == ""
    for split, told in {
        "train": f"no folder {tmp_path}/train: expected <root>/<split>/<wnid>/*.JPEG",
        "val:a": f"no images in {tmp_path}/val: expected some of the 200 classes",
        "a": f"no folder {tmp_path}/imagenet-a: expected <wnid>/*.jpg of 200 classes in the folder of ImageNet-A: set "
        "data.a, or put it at <data.root>/imagenet-a",
        "c/fog/3": f"no folder {tmp_path}/imagenet-c: expected <corruption>",
        "cue_conflict": f"no folder {tmp_path}/cue-conflict: expected <shape>",
    }.items():
        assert source.missing(split).startswith(told)
        with pytest.raises(FileNotFoundError) as error:
            source.take(split, 1)
        assert str(error.value) == source.missing(split)
    for split, told in {
        "r": f"2 of 2 folders in {tmp_path}/imagenet-r are no class of ImageNet-R",
        "c": "split must be one of train, val, val:a, val:r, a, r, v2, sketch, stylized, damagenet, cue_conflict, c/<",
        "sketch/2": "split must be one of train",
        "test": "split must be one of train, val, val:a, val:r, a, ",
    }.items():
        for ask in (source.missing, source.count):
            with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
                ask(split)


def test_model_with_other_classes_is_refused(family):
    with pytest.raises(
        ValueError, match="holds 5 classes and the head of the model has 10: make the model with num_cl"
    ):
        folder_source(family, make_vit())


def test_identity_follows_the_files_of_its_own_split(family, vit, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(family, root)
    before = {split: folder_source(root, vit).identity(split) for split in COUNTS}
    assert len({str(value) for value in before.values()}) == len(COUNTS)
    assert json.loads(json.dumps(before)) == before
    picture(root / "imagenet-c" / "fog" / "3" / wnids()[1] / "new.png")
    picture(root / "val" / wnids()[ONLY_A[0]] / "new.png")
    (root / "cue-conflict" / "classes.json").write_text(json.dumps({name: [i] for i, name in enumerate(COARSE)}))
    after = {split: folder_source(root, vit).identity(split) for split in COUNTS}
    assert {s for s in COUNTS if after[s] != before[s]} == {"c/fog/3", "val", "val:a", "cue_conflict"}


def test_only_a_few_splits_stay_open(family, vit, tmp_path):
    for corruption in CORRUPTIONS:
        by_wnid(tmp_path / corruption / "1", [1])
    source = folder_source(family, vit, c=tmp_path)
    first = source.open("val")
    assert [source.count(f"c/{corruption}/1") for corruption in CORRUPTIONS] == [1] * 15
    assert source.missing("val") == ""
    assert source.count("val") == 5
    assert source.open("val") is not first
    assert source.open("val").files == first.files


def test_unresized_copies_are_an_option(family, vit):
    cropped = open_source(DataConfig(kind="folder", root=str(family), resize=False), vit)
    plain = folder_source(family, vit)
    changed = {s for s in COUNTS if cropped.identity(s)["transform"] != plain.identity(s)["transform"]}
    assert changed == {"train", "val", "val:a", "val:r"}


# The embedded shapes, asked the same


def test_shapes_have_no_end_and_no_masks():
    vit = make_vit()
    source = open_source(DataConfig(seed=3), vit)
    for split in SPLITS:
        assert (source.count(split), source.missing(split), source.classes(split)) == (None, "", None)
    for split in ("val:a", "c/fog/3", "damagenet", "cue_conflict"):
        assert source.missing(split).startswith(
            f"the embedded shapes have no {split}, only train, val, v2, a, r, sketch"
        )
        assert source.classes(split) is None
    assert torch.equal(source.take("a", 2).images, render("a", range(2), seed=3, size=32).images)


def test_identity_of_shapes():
    def identity(split="val", size=32, **kwargs):
        return open_source(DataConfig(**kwargs), make_vit(img_size=size)).identity(split)

    assert identity() == identity()
    assert json.loads(json.dumps(identity())) == identity()
    assert len({str(i) for i in (identity(), identity("a"), identity(seed=1), identity(size=48))}) == 4


def test_names_are_in_the_order_of_labels(family, vit):
    names = folder_source(family, vit).names()
    assert (len(names), names[0], names[207]) == (1000, "tench", "golden retriever")
    assert open_source(DataConfig(), make_vit()).names() == list(CLASSES)


def test_another_family_in_the_folder_is_a_mistake_and_not_a_gap(tmp_path):
    """A folder that is not there leaves a column missing; ImageNet-V2 given as A stops the run."""
    (tmp_path / "v2" / "7").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "v2" / "7" / "image.jpeg")
    source = open_source(
        DataConfig(kind="folder", root=str(tmp_path), a=str(tmp_path / "v2")), make_vit(num_classes=1000)
    )
    assert "imagenet-r" in source.missing("r")
    with pytest.raises(ValueError, match=r"looks like ImageNet-V2"):
        source.missing("a")
