"""ImageNet-style folders: labels by the order of all wnids, pixels as the model expects, nothing skipped in silence."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WNIDS, make_vit, real_folder
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import VisionTransformer

from nslib.config import DataConfig, FinetuneConfig, NoiseConfig, SuiteConfig
from nslib.data.folders import FolderImages, label_of, own_labels, wnids
from nslib.data.source import open_source
from nslib.data.transforms import eval_transform
from nslib.evaluate.suite import evaluate_model
from nslib.finetune.rounds import finetune_model
from nslib.models import load_model, reset_head
from nslib.pretrain import accuracy
from nslib.store import model_digest
from nslib.vit.staged import StagedViT, renormalised


def test_wnids_are_the_thousand_in_order():
    order = wnids()
    assert len(set(order)) == 1000
    assert [order.index(w) for w in WNIDS] == [0, 207, 999]  # as ImageNet's class index prints them


@pytest.mark.parametrize("subset", ["imagenet-a", "imagenet-r"])
def test_subsets_keep_their_places_among_the_thousand(subset):
    labels = label_of(subset)
    assert len(labels) == 200
    assert all(wnids()[label] == wnid for wnid, label in labels.items())


def test_unknown_subset():
    with pytest.raises(ValueError, match="subset must be one of imagenet-1k, imagenet-a, imagenet-r, got"):
        wnids("imagenet-b")


def test_labels_and_pixels_of_a_few_classes(image_tree, vit):
    images = FolderImages(image_tree, "val", vit)
    assert len(images) == 12
    pixels, labels = images.load(range(12))
    assert pixels.shape == (12, 3, 32, 32)
    assert pixels.dtype == torch.float32
    level = (pixels[:, 0, 0, 0] * 255 / 8).round().long()
    assert torch.equal(labels, torch.tensor([0, 207, 999])[level // 4])
    assert sorted(level.tolist()) == list(range(12))


def test_grey_stays_its_own_grey(tmp_path):
    """Pixels are bytes / 255, whatever the model's mean and std."""
    Image.new("RGB", (40, 40), (128,) * 3).save(folder(tmp_path, WNIDS[0]) / "grey.png")
    model = make_vit("vit_base_patch16_clip_224")  # its std is not that of the other models
    pixels, _ = FolderImages(tmp_path, "val", model).load([0])
    assert pixels.unique().tolist() == [pytest.approx(128 / 255)]


def test_other_colour_modes_become_rgb(tmp_path, vit):
    home = folder(tmp_path, WNIDS[0])
    Image.new("L", (40, 40), 51).save(home / "a.png")
    Image.new("CMYK", (40, 40), (0, 0, 0, 204)).save(home / "b.jpg", quality=100)
    pixels, _ = FolderImages(tmp_path, "val", vit).load([0, 1])
    assert pixels.shape == (2, 3, 32, 32)
    assert torch.allclose(pixels, torch.tensor(0.2), atol=0.01)


def test_size_and_crop_come_from_the_model(image_tree):
    """A portrait picture, dark in its middle third: the centre crop keeps the middle only."""
    picture = Image.new("RGB", (60, 180), "white")
    picture.paste("black", (0, 60, 60, 120))
    picture.save(image_tree / "val" / WNIDS[0] / "portrait.png")
    for size in (32, (48, 48)):
        images = FolderImages(image_tree, "val", make_vit(img_size=size))
        (row,) = [i for i, (path, _) in enumerate(images.files) if path.name == "portrait.png"]
        pixels, _ = images.load([row])
        side = size if isinstance(size, int) else size[0]
        assert pixels.shape == (1, 3, side, side)
        assert pixels[..., 2:-2, :].max() < 0.05  # bicubic resizing blurs the rim


def test_without_resizing_pixels_of_224_stay_as_they_are():
    ramp = torch.arange(227 * 240).remainder(251).reshape(227, 240).to(torch.uint8)
    image = Image.fromarray(ramp.numpy())
    cropped = eval_transform(make_vit(img_size=224), resize=False)(image)
    assert torch.equal(cropped, ramp[2:226, 8:232].unsqueeze(0))  # torchvision rounds the odd row to even


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (300, 300)])
@pytest.mark.parametrize("image_size", [(224, 224), (20, 50)])
def test_without_resizing_other_models_see_the_same_part(size, image_size):
    """A white rim one eighth wide: it is scaled with the image, not cut away, and no black border is added."""
    width, height = image_size
    image = Image.new("L", image_size, 255)
    image.paste(128, (width // 8, height // 8, width - width // 8, height - height // 8))
    seen = eval_transform(make_vit(img_size=size), resize=False, made_for=224)(image)
    assert seen.shape == (1, *size)
    assert seen.min() > 100
    if width == height and size[0] == size[1]:
        assert seen[0, size[0] // 16].float().mean() > 230


@pytest.mark.parametrize("size", [24, 48, 300])
def test_ones_own_images_that_are_not_resized_are_cropped_only(image_tree, size):
    """Unlike published ones they were made for this model, whatever its size."""
    ramp = torch.arange(300 * 320).remainder(251).reshape(300, 320).to(torch.uint8)
    Image.fromarray(ramp.numpy()).save(image_tree / "val" / WNIDS[0] / "a.png")
    vit = make_vit(img_size=size)
    cropped = FolderImages(image_tree, "val", vit, resize=False).transform
    top, left = (300 - size) // 2, (320 - size) // 2
    with Image.open(image_tree / "val" / WNIDS[0] / "a.png") as image:
        assert torch.equal(cropped(image)[0], ramp[top : top + size, left : left + size])
    assert repr(cropped).endswith(f"CentreCrop(size=({size}, {size}), interpolation='bicubic')")
    published = eval_transform(vit, resize=False, made_for=224)
    assert repr(published) != repr(cropped)  # which a store tells apart


def test_a_folder_named_like_an_image_is_none(image_tree, vit):
    (image_tree / "val" / WNIDS[0] / "x.png").mkdir()
    with pytest.warns(UserWarning, match=r"1 entries .* are passed over, such as .*x\.png: only files"):
        images = FolderImages(image_tree, "val", vit)
    assert len(images) == 12


def test_order_is_drawn_from_the_seed_and_spread_over_classes(image_tree, vit):
    def order(seed):
        return [f for f, _ in FolderImages(image_tree, "val", vit, seed=seed).files]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))
    firsts = {f.parent.name for seed in range(5) for f in order(seed)[:2]}
    assert firsts == set(WNIDS)


def test_take_cuts_disjoint_pieces_and_limits_them(image_tree):
    vit = make_vit(num_classes=1000)
    source = open_source(DataConfig(kind="folder", root=str(image_tree), seed=2), vit)
    first, rest = source.take("val", 5), source.take("val", 7, start=5)
    together = FolderImages(image_tree, "val", vit, seed=2).load(range(12))
    assert torch.equal(torch.cat([first.images, rest.images]), together.images)
    assert torch.equal(torch.cat([first.labels, rest.labels]), together.labels)
    with pytest.raises(ValueError, match="holds 12 images, asked for 5 to 13: ask for fewer"):
        source.take("val", 8, start=5)


def test_classes_to_keep(image_tree, vit):
    images = FolderImages(image_tree, "val", vit, classes=(0, 999, 5))
    assert len(images) == 8
    assert images.load(range(8)).labels.unique().tolist() == [0, 999]
    with pytest.raises(
        FileNotFoundError, match=r"no images in .*/val: expected some of the 1 classes asked for as <root>"
    ):
        FolderImages(image_tree, "val", vit, classes=(5,))


def test_identity_tells_files_order_and_transform(image_tree, vit):
    def identity(model=vit, **kwargs):
        return FolderImages(image_tree, "val", model, **kwargs).identity()

    first = identity()
    assert first == identity()
    assert first["images"] == 12
    assert json.loads(json.dumps(first)) == first
    assert "0x" not in first["transform"]  # no address of an object
    others = [identity(seed=1), identity(resize=False), identity(make_vit(img_size=48))]
    image = image_tree / "val" / WNIDS[0] / "image_0.JPEG"
    content, stat = image.read_bytes(), image.stat()
    image.write_bytes(content[::-1])  # as long as before
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    others.append(identity())
    image.write_bytes(content + b"1")
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    others.append(identity())
    image.rename(image.with_name("other.JPEG"))
    others.append(identity())
    assert len({str(i) for i in [first, *others]}) == 7


def test_identity_does_not_depend_on_where_the_folder_lies(image_tree, vit, tmp_path):
    first = FolderImages(image_tree, "val", vit).identity()
    image_tree.rename(tmp_path / "moved")
    assert FolderImages(tmp_path / "moved", "val", vit).identity() == first


def test_a_copy_of_a_folder_differs_in_times_alone(image_tree, vit, tmp_path):
    first = FolderImages(image_tree, "val", vit).identity()
    copy = shutil.copytree(image_tree, tmp_path / "copy", copy_function=shutil.copyfile)
    second = FolderImages(copy, "val", vit).identity()
    assert first.pop("times") != second.pop("times")
    assert first == second


def test_unreadable_images_are_counted_and_named(image_tree, vit):
    half = image_tree / "val" / WNIDS[0] / "image_0.JPEG"
    half.write_bytes(half.read_bytes()[:-60])  # truncated
    (image_tree / "val" / WNIDS[1] / "image_1.JPEG").write_bytes(b"no image")
    (image_tree / "val" / WNIDS[2] / "image_2.JPEG").write_bytes(b"")
    images = FolderImages(image_tree, "val", vit)
    with pytest.raises(OSError, match=r"3 of 12 images are unreadable or truncated.*: fetch them again") as error:
        images.load(range(12))
    for wnid, name in zip(WNIDS, ("image_0", "image_1", "image_2"), strict=True):
        assert f"{wnid}/{name}.JPEG" in str(error.value)


def test_files_are_checked_without_reading_those_that_end_as_they_should(image_tree, vit, monkeypatch):
    """A JPEG with something behind its end is whole, one without its end is not; what is no JPEG is read."""
    folder = image_tree / "val" / WNIDS[0]
    (folder / "image_0.JPEG").write_bytes((folder / "image_0.JPEG").read_bytes() + b"behind the end")
    Image.open(folder / "image_1.JPEG").save(folder / "other.png")
    images, read = FolderImages(image_tree, "val", vit), []
    reading = images._read
    monkeypatch.setattr(images, "_read", lambda path: read.append(path.name) or reading(path))
    images.check(range(13))
    assert sorted(read) == ["image_0.JPEG", "other.png"]
    for name in ("image_2.JPEG", "other.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-60])
    (folder / "image_3.JPEG").write_bytes(b"")
    with pytest.raises(OSError, match=r"3 of 13 images are unreadable or truncated: .*: fetch them") as error:
        images.check(range(13))
    assert all(f"{WNIDS[0]}/{name}" in str(error.value) for name in ("image_2.JPEG", "image_3.JPEG", "other.png"))
    assert "began" not in str(error.value)
    images.check([i for i, (path, _) in enumerate(images.files) if path.parent != folder])


def test_what_is_passed_over_is_told(image_tree, vit):
    folder = image_tree / "val" / WNIDS[0]
    (folder / "more").mkdir()
    (folder / "notes.txt").write_text("text is no news")
    with pytest.warns(UserWarning, match=r"1 entries of class folders in .*val are passed over, such as .*more: only"):
        FolderImages(image_tree, "val", vit)
    (folder / "a.gif").write_bytes(b"GIF")
    with pytest.warns(UserWarning, match="2 entries of class folders"):
        assert len(FolderImages(image_tree, "val", vit)) == 12


def test_grey_models_see_grey_images(image_tree):
    small = dict(img_size=32, patch_size=16, embed_dim=24, depth=1, num_heads=2)
    colours, grey = (
        StagedViT(VisionTransformer(in_chans=c, **small), mean=(0.5,) * c, std=(0.5,) * c).eval() for c in (3, 1)
    )
    cfg = DataConfig(kind="folder", root=str(image_tree))
    (three, _), (one, _) = (open_source(cfg, model).take("val", 4) for model in (colours, grey))
    assert one.shape == (4, 1, 32, 32)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    assert torch.allclose((three * weights).sum(1, keepdim=True), one, atol=3 / 255)
    with pytest.raises(ValueError, match="takes images of 1 channels, shapes has 3: give a data set of your own"):
        open_source(DataConfig(), grey)


def test_a_thousand_classes_of_one_s_own_are_not_those_of_imagenet(tmp_path):
    for i in range(1000):
        folder = tmp_path / "train" / f"id{i:04}"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (i % 256, 0, 0)).save(folder / "a.png")
    with pytest.warns(
        UserWarning, match=r"are no wnids: labels are their places by name \(id0000, id0001, id0002, \.\.\.\)"
    ):
        source = open_source(DataConfig(kind="folder", root=str(tmp_path)), make_vit(num_classes=1000))
    assert source.names()[:2] == ["id0000", "id0001"]
    assert sorted(source.pick("train", range(1000)).labels.tolist()) == list(range(1000))
    (tmp_path / "train" / "id0999").rename(tmp_path / "train" / WNIDS[0])
    with pytest.raises(ValueError, match=r"999 of 1000 folders .* are no wnid of ImageNet-1k .*JPEG$"):
        open_source(DataConfig(kind="folder", root=str(tmp_path)), make_vit(num_classes=1000)).take("train", 1)


def test_images_of_sixteen_bits_are_not_cut_off(image_tree, vit):
    deep = np.full((40, 56), 40000, np.uint16)
    Image.fromarray(deep).save(image_tree / "val" / WNIDS[0] / "deep.png")
    with pytest.raises(OSError, match=r"1 of 13 images .*deep\.png.*convert those of more than 8 bits a channel"):
        FolderImages(image_tree, "val", vit).load(range(13))


def test_damage_that_pillow_tells_as_a_wrong_value_is_named(image_tree, vit):
    (image_tree / "val" / WNIDS[0] / "odd.ppm").write_bytes(b"P6 4 25* 255\n" + bytes(300))
    with pytest.raises(OSError, match=r"1 of 13 images .*odd\.ppm"):
        FolderImages(image_tree, "val", vit).load(range(13))


def test_images_above_the_limit_of_pillow_are_named(image_tree, vit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match="12 of 12 images are unreadable"):
        FolderImages(image_tree, "val", vit).load(range(12))


def test_tiff_files_are_images_and_empty_classes_are_told(image_tree, vit):
    for path in (image_tree / "val" / WNIDS[1]).iterdir():
        Image.open(path).save(path.with_suffix(".tif"))
        path.unlink()
    for path in (image_tree / "val" / WNIDS[2]).iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match=rf"1 of 3 class folders in .*val hold no image .*\.tif.* \({WNIDS[2]}\)"):
        images = FolderImages(image_tree, "val", vit)
    assert len(images) == 8


@pytest.mark.parametrize(("n", "start"), [(0, 0), (2, -3)])
def test_places_that_are_none(image_tree, vit, n, start):
    model = make_vit(num_classes=1000)
    source = open_source(DataConfig(kind="folder", root=str(image_tree)), model)
    with pytest.raises(ValueError, match=rf"images to take must be >= 1, from place 0 on, got {n} from {start}"):
        source.take("val", n, start=start)


def test_many_unreadable_images_are_named_in_part(image_tree, vit):
    for path in (image_tree / "val").rglob("*.JPEG"):
        path.write_bytes(b"")
    with pytest.raises(OSError, match=r"12 of 12 images .* \.\.\.: fetch them again"):
        FolderImages(image_tree, "val", vit).load(range(12))


def folder(root, wnid):
    home = root / "val" / wnid
    home.mkdir(parents=True)
    return home


def test_missing_folder(tmp_path, vit):
    with pytest.raises(FileNotFoundError, match=r"no folder .*/val: expected <root>/<split>/<wnid>/\*\.JPEG"):
        FolderImages(tmp_path, "val", vit)


def test_folder_without_images(tmp_path, vit):
    (folder(tmp_path, WNIDS[0]) / "README.txt").write_text("not an image")
    with pytest.raises(FileNotFoundError, match=r"no images in .*/val: expected <root>/<split>/<wnid>/\*\.JPEG"):
        FolderImages(tmp_path, "val", vit)


def test_unknown_wnid(image_tree, vit):
    (image_tree / "val" / "goldfish").mkdir()
    with pytest.raises(ValueError, match=r"1 of 4 folders in .* are no wnid of ImageNet-1k \(goldfish\): expected"):
        FolderImages(image_tree, "val", vit)


def test_classes_of_ones_own_before_a_head_of_imagenet_are_told_the_option(own_classes):
    source = open_source(DataConfig(kind="folder", root=str(own_classes)), make_vit(num_classes=1000))
    told = r"3 of 3 folders in .*train are no wnid of ImageNet-1k .*, or, for classes of your own, .*--num-classes 3$"
    with pytest.raises(ValueError, match=told):
        source.take("train", 1)


def test_hidden_names_are_no_classes_and_no_images(image_tree, own_classes, vit):
    before = FolderImages(image_tree, "val", vit).identity()
    for home in (image_tree / "val", own_classes / "train"):
        (home / ".ipynb_checkpoints").mkdir()
    (image_tree / "val" / WNIDS[0] / "._image_0.JPEG").write_bytes(b"what a Mac leaves beside a file")
    assert FolderImages(image_tree, "val", vit).identity() == before
    assert list(own_labels(own_classes, 3)) == ["cat", "dog", "emu"]


@pytest.mark.parametrize(("place", "name"), [("", "n01443537"), (WNIDS[0], "image_9.JPEG")])
def test_links_that_lead_nowhere_are_counted_and_named(image_tree, vit, place, name):
    folder = image_tree / "val" / place
    link = folder / name
    link.symlink_to(image_tree / "gone")
    with pytest.raises(OSError, match=rf"1 links in {folder} lead nowhere \({name}\): mend or remove them"):
        FolderImages(image_tree, "val", vit)
    link.unlink()
    link.symlink_to(folder / WNIDS[1] if not place else folder / "image_0.JPEG")
    assert len(FolderImages(image_tree, "val", vit)) == (13 if place else 16)


def test_no_root(vit):
    with pytest.raises(ValueError, match="pass --imagenet FOLDER or set NSLIB_IMAGENET"):
        open_source(DataConfig(kind="folder"), vit)


# Classes of the user's own


@pytest.fixture
def own_classes(tmp_path) -> Path:
    """Six images of each of three classes to train on, and one of each to look at, which lie in another order."""
    for split, names, n in (("train", ("cat", "dog", "emu"), 6), ("val", ("emu", "dog", "cat"), 1)):
        for c, name in enumerate(names):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for i in range(n):
                picture = Image.new("RGB", (40, 40), (80 * c, 10 * i, 0))
                picture.save(tmp_path / "own" / split / name / f"{i}.png")
    return tmp_path / "own"


def test_classes_of_ones_own_are_the_folders_of_train(own_classes):
    source = open_source(DataConfig(kind="folder", root=str(own_classes)), make_vit(num_classes=3))
    assert source.names() == ["cat", "dog", "emu"]
    assert source.take("train", 18).labels.bincount().tolist() == [6, 6, 6]
    images, labels = source.take("val", 3)
    red = (images[:, 0].mean((1, 2)) * 255 / 80).round().long()  # 0: the emu
    assert labels.tolist() == (2 - red).tolist()
    assert source.classes("val") is None
    for split in ("a", "val:a"):
        assert "a has classes of ImageNet-1k" in source.missing(split)


def test_classes_of_ones_own_without_train(own_classes):
    shutil.rmtree(own_classes / "train")
    source = open_source(DataConfig(kind="folder", root=str(own_classes)), make_vit(num_classes=3))
    assert sorted(source.take("val", 3).labels.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("heads", [2, 10])
def test_as_many_classes_as_the_head(own_classes, heads):
    told = f"own/train holds 3 classes and the head of the model has {heads}: make the model with num_classes=3"
    with pytest.raises(ValueError, match=told):
        open_source(DataConfig(kind="folder", root=str(own_classes)), make_vit(num_classes=heads))


def test_a_class_that_train_does_not_have(own_classes):
    (own_classes / "val" / "fox").mkdir()
    source = open_source(DataConfig(kind="folder", root=str(own_classes)), make_vit(num_classes=3))
    with pytest.raises(ValueError, match=r"1 of 4 folders in .*val are no class of the model \(fox\): expected"):
        source.take("val", 1)


def test_no_classes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no classes in .*: expected <root>/<split>/<class>/"):
        open_source(DataConfig(kind="folder", root=str(tmp_path)), make_vit(num_classes=3))


def test_finetuning_and_measuring_on_classes_of_ones_own(own_classes):
    """The head that the file has is the one that its images are labelled for."""
    cfg = FinetuneConfig(rounds=1, steps=2, batch=4, pool=4, heldout=2, noise=NoiseConfig(steps=2, batch=4, eps=None))
    model, target = make_vit(num_classes=3), own_classes / "weights.safetensors"
    source = open_source(DataConfig(kind="folder", root=str(own_classes)), model)
    finetune_model(model, source, cfg, target=target)
    again = load_model(model.name, target, img_size=32, embed_dim=48, depth=2, num_heads=3)
    assert again.num_classes == 3
    suite = SuiteConfig(columns=("clean", "a", "damagenet"), images=3)
    found = evaluate_model(again, open_source(source.cfg, again), suite, progress=False)
    assert list(found.hits) == ["clean"]
    assert set(found.missing) == {"a", "damagenet"}


def test_a_head_keeps_the_names_of_the_classes_that_it_was_finetuned_for(own_classes, tmp_path):
    """Another folder of as many classes is refused, and one with some of them is labelled by name, not by place."""
    cfg = FinetuneConfig(rounds=1, steps=1, batch=4, pool=4, heldout=2, objective="plain", noise=NoiseConfig(steps=2))
    model, target = make_vit(num_classes=3), tmp_path / "weights.safetensors"
    source = open_source(DataConfig(kind="folder", root=str(own_classes)), model)
    assert finetune_model(model, source, cfg, target=target).model.classes == ("cat", "dog", "emu")
    assert finetune_model(model, source, cfg, target=target).model.classes == ("cat", "dog", "emu")  # from the file
    assert model.classes == ()
    tuned = load_model(model.name, target, img_size=32, embed_dim=48, depth=2, num_heads=3)
    assert tuned.classes == renormalised(tuned, mean=(0.4,) * 3, std=(0.3,) * 3).classes == ("cat", "dog", "emu")
    assert model_digest(tuned) == model_digest(finetune_model(model, source, cfg).model)  # a name changes no logit

    shutil.rmtree(own_classes / "train")
    shutil.rmtree(own_classes / "val" / "cat")
    some = open_source(source.cfg, tuned)
    assert sorted(some.take("val", 2).labels.tolist()) == [1, 2]
    assert some.names() == ["cat", "dog", "emu"]

    (own_classes / "val" / "dog").rename(own_classes / "val" / "fox")
    told = r"val has 1 classes \(fox\) that are none of those the model was finetuned for \(cat, dog, emu, ...\): name"
    with pytest.raises(ValueError, match=told):
        open_source(source.cfg, tuned)
    reset_head(tuned, 3)  # the same head, for other classes
    with pytest.raises(ValueError, match="holds 2 classes and the head of the model has 3"):
        open_source(source.cfg, tuned)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "resize", "percents"),
    [
        ("val", False, {"own": 82.38}),  # these copies were resized before
        ("train", True, {"own": 81.10, "other": 49.40}),  # DeiT's, with which the authors read this ViT
    ],
)
def test_pretrained_vit_reaches_the_known_accuracy(split, resize, percents):
    root, weights = real_folder("NSLIB_IMAGENET"), real_folder("NSLIB_WEIGHTS")
    own = load_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", weights)
    other = StagedViT(own.vit, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD).eval()
    models = {"own": own, "other": other}
    source = open_source(DataConfig(kind="folder", root=str(root), resize=resize), own)
    n, hits = source.count(split), dict.fromkeys(percents, 0)
    for start in range(0, n, 100):
        pixels, labels = source.take(split, min(100, n - start), start=start)
        for name in percents:
            hits[name] += round(accuracy(models[name], pixels, labels, batch=50) * len(labels))
    assert hits == pytest.approx({name: percent / 100 * n for name, percent in percents.items()}, abs=2)
