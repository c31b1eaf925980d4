"""The embedded data set: image i is a function of (seed, split, i) alone, and each split is what it says."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_vit
from scipy import stats

from nslib.config import DataConfig
from nslib.data import shapes
from nslib.data.geometry import length
from nslib.data.hashing import Draws
from nslib.data.shapes import CLASSES, SPLITS, render
from nslib.data.source import open_source

SIZES = [48, 50, 224]  # 50: rows that no vector width divides
INDICES = [0, 1, 2, 77, 5_000_000_019]


def stack(parts) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)


def same(a, b) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("split", SPLITS)
def test_batch_order_and_chunks_change_no_byte(split, size, monkeypatch):
    together = render(split, INDICES, size=size)
    assert together.images.shape == (len(INDICES), 3, size, size)
    assert same(together, stack(render(split, [i], size=size) for i in INDICES))
    backwards = render(split, torch.tensor(INDICES[::-1]), size=size)
    assert same(together, (backwards.images.flip(0), backwards.labels.flip(0)))
    monkeypatch.setattr(shapes, "_CHUNK_PIXELS", 2 * size**2)  # two images a pass; one, then all of them
    assert same(together, render(split, INDICES, size=size))
    monkeypatch.setattr(shapes, "_CHUNK_PIXELS", 100 * size**2)
    assert same(together, render(split, INDICES, size=size))


FINGERPRINTS = """
import hashlib, torch
from nslib.data.shapes import SPLITS, render
for split in SPLITS:
    for size in (48, 50, 224):
        images, labels = render(split, [3, 1000, 4], seed=5, size=size)
        print(hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest())
"""


def test_another_process_with_more_threads_draws_the_same_bytes():
    code = f"import torch; torch.set_num_threads({torch.get_num_threads() + 1})" + FINGERPRINTS
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = []
    for split in SPLITS:
        for size in SIZES:
            images, labels = render(split, [3, 1000, 4], seed=5, size=size)
            here.append(hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest())
    assert done.stdout.split() == here


def test_lengths_are_rounded_exactly():
    x, y = torch.rand(2, 300_000, generator=torch.Generator().manual_seed(0)) * 8 - 4  # a few that MKL rounds otherwise
    square = (x * x + y * y).numpy().astype(np.float64)
    assert np.array_equal(length(x, y).numpy(), np.sqrt(square).astype(np.float32))


@pytest.mark.parametrize("split", SPLITS)
def test_pixels_are_bytes_and_differ_between_images(split):
    images, labels = render(split, range(40), size=32)
    levels = images * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert torch.equal(images, levels.round() / 255)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert len(torch.unique(images.flatten(1), dim=0)) == 40
    assert images.flatten(1).std(1).min() > 0.02  # none is blank


def test_labels_are_balanced():
    _, labels = render("val", range(3000), size=16)
    counts = labels.bincount(minlength=len(CLASSES))
    assert len(counts) == 10
    assert stats.chisquare(counts).pvalue > 0.01


def test_splits_and_seeds_draw_different_images():
    drawn = [render(split, range(64), size=16) for split in SPLITS]
    drawn += [render("val", range(64), size=16, seed=seed) for seed in (1, 2**40, -1)]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert not torch.equal(a.labels, b.labels)
            assert (a.images != b.images).flatten(1).any(1).all()


def test_no_images_is_an_empty_batch():
    images, labels = render("val", [], size=20)
    assert images.shape == (0, 3, 20, 20)
    assert labels.shape == (0,)


def object_textures(monkeypatch, split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels, and the texture that each object was painted with."""
    kinds, texture = [], shapes._texture

    def spy(draw, name, kind, *rest):
        if name == "f":
            kinds.append(kind)
        return texture(draw, name, kind, *rest)

    monkeypatch.setattr(shapes, "_texture", spy)
    labels = render(split, range(count), size=16).labels
    return labels, torch.cat(kinds)


def test_stylized_never_draws_the_texture_of_the_class(monkeypatch):
    labels, textures = object_textures(monkeypatch, "stylized", 2000)
    assert not (labels == textures).any()
    others = ((textures - labels) % 10).bincount(minlength=10)[1:]
    assert stats.chisquare(others).pvalue > 0.01  # the nine others, evenly


def test_texture_agrees_with_the_class_as_often_as_the_recipe_says(monkeypatch):
    labels, textures = object_textures(monkeypatch, "val", 2000)
    forced = SPLITS["val"].agree
    expected = forced + (1 - forced) / len(CLASSES)  # the rest draw any, their own among them
    assert stats.binomtest(int((labels == textures).sum()), 2000, expected).pvalue > 0.01


def test_a_draw_is_used_for_one_thing(monkeypatch):
    """Two quantities with one name, or with names that begin with the same seven letters, would be one number."""
    names = []

    class Noted(Draws):
        def __call__(self, name, *args):
            names.append(name)
            return super().__call__(name, *args)

    monkeypatch.setattr(shapes, "Draws", Noted)
    for split in SPLITS:
        names.clear()
        render(split, [0], size=16)
        drawn = [n[:7] for n in names]
        assert len(drawn) == len(set(drawn))


def test_sketch_is_dark_lines_on_white():
    images, _ = render("sketch", range(50))
    assert images.flatten(1).median(1).values.min() > 0.9
    assert images.flatten(1).amin(1).max() < 0.5
    assert (images - images.mean(1, keepdim=True)).abs().max() < 0.005  # grey, up to rounding


def test_renditions_are_flat_posterised_or_coarse(monkeypatch):
    monkeypatch.setattr(shapes, "_pixel_noise", lambda keys, size: torch.zeros(len(keys), size, size))
    images = render("r", range(60)).images
    posterised = ((images * 3 - (images * 3).round()).abs() < 0.01).flatten(1).all(1)
    blocks = images.reshape(60, 3, 16, 3, 16, 3)
    coarse = (blocks == blocks[:, :, :, :1, :, :1]).flatten(1).all(1)
    assert 10 < posterised.sum() < 30
    assert 10 < coarse.sum() < 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(split="test", indices=[0]), "split must be one of train, val, v2.*got 'test'"),
        (dict(split="val", indices=[0, -3]), "indices must be >= 0, got -3"),
        (dict(split="val", indices=[0], size=15), "size must be at least 16 px .*got 15"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        render(**arguments)


def test_source_renders_at_the_size_of_the_model(vit):
    source = open_source(DataConfig(seed=3), vit)
    assert same(source.take("val", 4, start=10), render("val", range(10, 14), seed=3, size=32))


def test_source_refuses_a_model_that_is_not_square():
    with pytest.raises(ValueError, match=r"takes 32 x 48: make it with img_size=\(32, 32\)"):
        open_source(DataConfig(), make_vit(img_size=(32, 48)))


def test_source_refuses_an_unknown_kind(vit):
    with pytest.raises(ValueError, match="data kind must be shapes or folder, got 'web'"):
        open_source(DataConfig(kind="web"), vit)


def test_train_can_be_made_to_end(vit):
    source, few = open_source(DataConfig(), vit), open_source(DataConfig(images=5), vit)
    assert (source.count("train"), few.count("train"), few.count("val")) == (None, 5, None)
    assert torch.equal(source.take("train", 5).images, few.take("train", 5).images)
    assert source.identity("train") != few.identity("train")
    assert source.identity("val") == few.identity("val")
    with pytest.raises(ValueError, match=r"data\.images = 5, asked for image 5 of train: raise it, or set it to 0"):
        few.take("train", 6)
    with pytest.raises(ValueError, match=r"images must be >= 0, got -1"):
        DataConfig(images=-1)
    with pytest.raises(ValueError, match=r"data\.images must be 0 for a folder"):
        open_source(DataConfig(kind="folder", root="anywhere", images=5), vit)


def test_lines_are_as_thick_at_every_size():
    """As shares of the image: a sketch of 144 px is no thinner one."""
    small, large = ((render("sketch", range(20), size=s).images < 0.5).float().mean().item() for s in (48, 144))
    assert large == pytest.approx(small, rel=0.2)
