"""The suite on folders: cue-conflict, what is published and what is made here, and folders that are not whole."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_vit
from test_families import by_wnid, cue_conflict, folder_source, listed

from nslib.attacks.surrogate import SurrogateCNN
from nslib.config import DataConfig, SuiteConfig
from nslib.data.corruptions import CORRUPTIONS, SEVERITIES
from nslib.data.folders import wnids
from nslib.data.source import open_source
from nslib.evaluate import suite as suite_module
from nslib.evaluate.bench import Bench
from nslib.evaluate.columns import hits_of
from nslib.evaluate.comparison import differences, mean_difference, pool_seeds
from nslib.evaluate.cue import cue_conflict_table
from nslib.evaluate.examples import column_examples
from nslib.evaluate.suite import dry_run, evaluate_model
from nslib.machine.processes import Share

SUITE = SuiteConfig(columns=("clean", "cue_conflict"), images=100, batch=2)
CUES = [
    f"{s}{i}-{t}{i}.png"
    for i, (s, t) in enumerate([("cat", "dog"), ("dog", "cat"), ("car", "oven"), ("truck", "bird"), ("bear", "boat")])
]


@pytest.fixture(scope="module")
def vit():
    model = make_vit(num_classes=1000)
    with torch.no_grad():
        model.vit.head.weight *= 50
    return model


@pytest.fixture
def root(tmp_path):
    by_wnid(tmp_path / "val", range(5))
    cue_conflict(tmp_path / "cue-conflict", CUES)
    return tmp_path


@pytest.fixture
def computed(monkeypatch):
    parts = []
    monkeypatch.setattr(suite_module, "hits_of", lambda bench, part: (parts.append(part), hits_of(bench, part))[1])
    return parts


def published_c(folder, labels=(0, 1)):
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            by_wnid(folder / corruption / str(severity), labels)
    return folder


# Shape or texture


def test_cue_conflict_is_a_column(root, vit, computed):
    source = folder_source(root, vit)
    found = evaluate_model(vit, source, SUITE, progress=False)
    images = source.open("cue_conflict")
    pixels, labels = source.take("cue_conflict", 5)
    with torch.no_grad():
        shape, texture = (followed.sum().item() for followed in images.follows(vit(pixels), labels))
    assert [p.column for p in computed].count("cue_conflict") == 3
    table = found.table().set_index("measure").loc[["shape", "texture", "other"]]
    decisions = [shape, texture, 5 - shape - texture]
    assert (table.value * 5 / 100).round().tolist() == decisions
    assert table.column.eq("cue_conflict").all()
    assert table.n.eq(5).all()
    computed.clear()
    assert cue_conflict_table(Bench(vit, source, SUITE)).images.tolist() == decisions
    assert computed == []  # from the store


def test_cue_conflict_hits_by_hand(root, vit, monkeypatch):
    """Logits that answer each image's shape, its texture, or a third class."""
    bench = Bench(vit, folder_source(root, vit), SUITE)
    _, labels = bench.take("cue_conflict", 0, 3)
    answers = torch.stack([labels[0] // 16, labels[1] % 16, torch.tensor(15)])
    logits = torch.zeros(3, 1000)
    logits[torch.arange(3), 2 * answers] = 50  # a coarse class i consists of the labels 2 i and 2 i + 1
    monkeypatch.setattr(bench, "logits", lambda *a: logits)
    part = suite_module.Part("cue_conflict", "", 0, 3)
    expected = {"shape": [True, False, False], "texture": [False, True, False]}
    third = labels[2].item()
    assert 15 not in (third // 16, third % 16)
    assert {k: v.tolist() for k, v in hits_of(bench, part).items()} == expected


def test_cue_conflict_is_shared_by_the_ranks(root, vit):
    source, suite = folder_source(root, vit), replace(SUITE, columns=("cue_conflict",))
    lists = []
    for rank in range(2):
        with pytest.raises(KeyError):
            evaluate_model(vit, source, suite, share=Share(rank, 2, gather=lambda own: lists.append(own) or own))
    assert [len(own) for own in lists] == [2, 1]
    joined = evaluate_model(vit, source, suite, share=Share(0, 2, gather=lambda own: lists[0] + lists[1]))
    alone = evaluate_model(vit, source, suite, progress=False)
    for cue in ("shape", "texture"):
        assert joined.hits["cue_conflict"][cue].tolist() == alone.hits["cue_conflict"][cue].tolist()


def test_cue_conflict_names_nan_logits(root):
    broken = make_vit(num_classes=1000)
    with torch.no_grad():
        broken.vit.head.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"column cue_conflict, images 0 to 2: .* NaN logits"):
        cue_conflict_table(Bench(broken, folder_source(root, broken), SUITE))


def test_decisions_by_cue_are_no_top1(root, vit):
    found = evaluate_model(vit, folder_source(root, vit), SUITE, progress=False)
    assert differences(found, found).column.tolist() == ["clean"]
    assert list(column_examples(Bench(vit, folder_source(root, vit), SUITE), 1)) == ["clean"]
    with pytest.raises(ValueError, match="is of top-1, cue_conflict has decisions by cue: leave it out"):
        mean_difference(found, found, ["clean", "cue_conflict"])
    with pytest.raises(ValueError, match="cue_conflict has no top-1"):
        found.estimate("cue_conflict")
    pooled = pool_seeds([found, found], "twice")
    assert {(e.n, e.seeds) for e in pooled.decisions().values()} == {(5, 2)}
    assert sum(e.value for e in pooled.decisions().values()) == pytest.approx(100)


# Published, or made here


def test_the_published_c_is_told_from_one_made_here(root, vit):
    suite = replace(SUITE, columns=("c",))
    made = evaluate_model(vit, folder_source(root, vit), suite, progress=False)
    assert (made.sources, made.published_c) == ({"c": "made here"}, False)
    source = folder_source(root, vit, c=published_c(root / "elsewhere"))
    found = evaluate_model(vit, source, suite, progress=False)
    assert (found.sources, found.published_c) == ({"c": "ImageNet-C as published"}, True)
    assert found.table()[["measure", "source"]].to_numpy().tolist() == [["mCE", "ImageNet-C as published"]]


def test_stylized_images_are_told_to_be_of_val_where_they_are(root, vit):
    by_wnid(root / "stylized", range(5))
    by_wnid(root / "sketch", range(5))
    suite = replace(SUITE, columns=("clean", "stylized", "sketch"))
    found = evaluate_model(vit, folder_source(root, vit), suite, progress=False)
    assert found.sources == {"stylized": "Stylized-ImageNet as published"}
    small = make_vit(num_classes=10, img_size=48)
    drawn = evaluate_model(small, open_source(DataConfig(), small), replace(suite, images=2), progress=False)
    assert ("stylized" in drawn.hits, drawn.sources) == (True, {})


def test_a_published_c_needs_no_library(root, vit, monkeypatch):
    monkeypatch.setattr("nslib.evaluate.columns.find_spec", lambda name: None)
    source = folder_source(root, vit, c=published_c(root / "elsewhere"))
    assert evaluate_model(vit, source, replace(SUITE, columns=("c",)), progress=False).missing == {}


def test_a_c_that_was_set_must_be_whole(root, vit):
    folder = published_c(root / "imagenet-c")
    shutil.rmtree(folder / "fog" / "3")
    suite = replace(SUITE, columns=("c",))
    told = r"no folder .*fog/3, of the 75 parts there are 74 .*data\.c was set .* or leave data\.c empty"
    with pytest.raises(FileNotFoundError, match=told):
        evaluate_model(vit, folder_source(root, vit, c=folder), suite, progress=False)
    with pytest.raises(FileNotFoundError, match=r"no folder .*/gone: .*data\.c was set"):
        evaluate_model(vit, folder_source(root, vit, c=root / "gone"), suite, progress=False)
    with pytest.warns(UserWarning, match="no folder .*fog/3, .* is passed over, and such images are made here"):
        found = evaluate_model(vit, folder_source(root, vit), suite, progress=False)  # at its customary place alone
    assert found.sources == {"c": "made here"}


def test_all_parts_of_c_hold_the_same_images(root, vit):
    folder = published_c(root / "imagenet-c")
    bench = Bench(vit, folder_source(root, vit), SUITE)
    assert bench.published("c")
    (folder / "snow" / "4" / wnids()[1] / "image.JPEG").rename(folder / "snow" / "4" / wnids()[1] / "other.JPEG")
    told = rf"imagenet-c/snow/4 and .*imagenet-c/gaussian_noise/1 differ in 2 images, {wnids()[1]}/image.JPEG is not in"
    with pytest.raises(ValueError, match=told):
        Bench(vit, folder_source(root, vit), SUITE).published("c")


def test_a_damagenet_that_was_set_must_be_whole(root, vit):
    torch.manual_seed(0)
    surrogate = SurrogateCNN(1000, 32).eval()
    suite = replace(SUITE, columns=("damagenet",), images=2)
    folder = listed(root / "elsewhere", [1, 2])
    found = evaluate_model(vit, folder_source(root, vit, damagenet=folder), suite, progress=False)
    assert found.sources == {"damagenet": "DAmageNet as published"}
    (folder / "val_damagenet.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no val_damagenet\.txt in .*data\.damagenet was set"):
        evaluate_model(vit, folder_source(root, vit, damagenet=folder), suite, surrogate=surrogate, progress=False)
    made = evaluate_model(vit, folder_source(root, vit), suite, surrogate=surrogate, progress=False)
    assert made.sources == {"damagenet": "made here on the surrogate"}
    assert np.isfinite(made.table().value).all()


def test_a_damagenet_that_is_there_takes_no_attack(root, vit):
    torch.manual_seed(0)
    surrogate = SurrogateCNN(1000, 32).eval()
    suite = replace(SUITE, columns=("damagenet",), images=2)
    passes = dry_run(Bench(vit, folder_source(root, vit), suite, surrogate))["forward passes"]
    listed(root / "damagenet", [1, 2])
    given = dry_run(Bench(vit, folder_source(root, vit), suite, surrogate))["forward passes"]
    assert (passes.item(), given.item()) == (62, 2)
