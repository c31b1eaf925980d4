"""Small real things to test on: a ViT, a pool, a folder of JPEGs. Nothing is read from or written to the work tree."""

import os

# Before timm is imported: no test asks the hub, whatever this machine has cached or can reach.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": os.devnull}

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from nslib.config import DataConfig
from nslib.data.shapes import Batch
from nslib.data.source import ShapesSource
from nslib.models import build_model
from nslib.nullspace.membership import Pool, make_pool
from nslib.runtime import generator
from nslib.vit.staged import StagedViT

ROOT = Path(__file__).resolve().parents[1]
WNIDS = ("n01440764", "n02099601", "n15075141")  # tench 0, golden retriever 207, toilet tissue 999
SMALL = dict(img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=10)
TINY = dict(img_size=24, embed_dim=24, depth=2, num_heads=2)


@pytest.fixture(autouse=True)
def folders(tmp_path_factory, monkeypatch) -> Path:
    """Every test has a store and a figure folder of its own."""
    folder = tmp_path_factory.mktemp("nslib")
    monkeypatch.setenv("NSLIB_STORE", str(folder / "store"))
    monkeypatch.setenv("NSLIB_FIGURES", str(folder / "figures"))
    return folder


def make_vit(name: str = "vit_tiny_patch16_224", *, spread: float = 0.0, seed: int = 0, **kwargs) -> StagedViT:
    """A small random ViT in evaluation mode; `spread` moves every parameter, so that none is zero or one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(name, **(SMALL | kwargs)).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * spread)
    return model


def tiny_vit(depth: int = 2) -> StagedViT:
    """The shipped architecture with four tokens of width 24, untrained, for tests of finetuning."""
    return make_vit("shapes_vit", **TINY | {"depth": depth})


class FewImages:
    """A data set that ends, as a folder does: n images of random pixels, of which the first of image i is i / n.

    Image i is of class i modulo ten, or with `second` of class 0, and 1 from that image on.
    """

    def __init__(self, n: int, second: int = 0):
        self.n, rows = n, torch.arange(n)
        self.images = torch.rand(n, 3, 24, 24, generator=generator(0))
        self.images[:, 0, 0, 0] = rows / n
        self.labels = (rows >= second).long() if second else rows % 10

    def take(self, split: str, n: int, *, start: int = 0) -> Batch:
        assert split == "train"
        assert start + n <= self.n
        return self.pick(split, range(start, start + n))

    def pick(self, split: str, rows: Sequence[int]) -> Batch:
        return Batch(self.images[list(rows)], self.labels[list(rows)])

    def count(self, split: str) -> int:
        return self.n

    def identity(self, split: str) -> dict:
        return {"kind": "few", "n": self.n}


def files_in(folder: Path) -> list[str]:
    """Names but that of the folder that is there if TensorBoard is."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".tensorboard")


@pytest.fixture
def model() -> StagedViT:
    return tiny_vit()


@pytest.fixture
def source(model) -> ShapesSource:
    return ShapesSource(DataConfig(), model)


@pytest.fixture
def vit() -> StagedViT:
    """(1, 4, 48) tokens and ten classes; confident enough that noise of the tokens' own size changes its mind."""
    model = make_vit()
    with torch.no_grad():
        model.vit.head.weight *= 50
    return model


def random_images(model: StagedViT, n: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, *model.image_shape, generator=generator(seed))


@pytest.fixture
def pool(vit) -> Pool:
    """48 images to learn from and 24 held out."""
    return make_pool(vit, random_images(vit, 72), heldout=24)


@pytest.fixture
def image_tree(tmp_path) -> Path:
    """`val/<wnid>/*.JPEG` with four flat images for each of three classes; the level is 8 times (4 class + image)."""
    for c, wnid in enumerate(WNIDS):
        folder = tmp_path / "tree" / "val" / wnid
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40, 56), (8 * (4 * c + i),) * 3).save(folder / f"image_{i}.JPEG", quality=100)
    return tmp_path / "tree"


def real_folder(variable: str) -> Path:
    """The folder that an environment variable names; the test is skipped where it is unset."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set")
    return Path(folder)
