"""Photographs that come inside installed packages, so that figures have real pictures without any network."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from nslib.data.transforms import eval_transform
from nslib.runtime import packaged
from nslib.vit.staged import StagedViT


@dataclass(frozen=True)
class Photograph:
    """Where a photograph lies, and whose it is."""

    package: str
    file: str
    licence: str
    source: str


PHOTOGRAPHS = {
    "astronaut": Photograph("skimage", "data/astronaut.png", "public domain", "NASA, Eileen Collins"),
    "cat": Photograph("skimage", "data/chelsea.png", "CC0", "Stefan van der Walt"),
    "coffee": Photograph("skimage", "data/coffee.png", "CC0", "Rachel Michetti"),
    "rocket": Photograph("skimage", "data/rocket.jpg", "public domain", "SpaceX, Falcon 9 with DSCOVR"),
    "temple": Photograph("sklearn", "datasets/images/china.jpg", "CC BY 2.0", "danielbuechele, Flickr 6061409035"),
    "flower": Photograph("sklearn", "datasets/images/flower.jpg", "CC BY 2.0", "vultilion, Flickr 6056698931"),
}


def credit_table() -> pd.DataFrame:
    """Licence, source and package of each photograph, one a row."""
    rows = [{"photograph": name} | vars(photograph) for name, photograph in PHOTOGRAPHS.items()]
    return pd.DataFrame(rows)[["photograph", "licence", "source", "package"]]


def open_photograph(name: str, model: StagedViT) -> Tensor:
    """A photograph as the model takes it, resized and cropped, (3, H, W) in 256 levels of [0, 1].

    Raises:
        ValueError: no photograph of this name.
        ModuleNotFoundError: its package is not installed.
    """
    if name not in PHOTOGRAPHS:
        raise ValueError(f"no photograph {name!r}: there are {', '.join(PHOTOGRAPHS)}")
    photograph = PHOTOGRAPHS[name]
    with Image.open(packaged(photograph.package, "xai", photograph.file)) as image:
        return eval_transform(model)(image.convert("RGB")).float() / 255


def open_photographs(model: StagedViT) -> Tensor:
    """All of them, (6, 3, H, W), on the model's device. Errors as `open_photograph`."""
    return torch.stack([open_photograph(name, model) for name in PHOTOGRAPHS]).to(model.device)
