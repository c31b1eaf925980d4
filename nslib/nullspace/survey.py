"""How many ViTs have a linear nullspace at all? Told from architectures alone, without any weights."""

from __future__ import annotations

import pandas as pd
import timm
import torch

from nslib.models import build_model


def survey_timm() -> pd.DataFrame:
    """One row for each plain ViT of timm: patch side, pixels of a patch C P P, width D, least null dimension.

    The least null dimension max(0, C P P - D) is exact for weights of full rank; the weights can only raise it. Models
    are made with one block on torch's meta device, which allocates nothing. Others (hybrids) are left out.
    """
    rows = []
    with torch.device("meta"):
        for name in timm.list_models(module="vision_transformer"):
            try:
                model = build_model(name, depth=1)
            except TypeError:  # not one convolution
                continue
            width, channels, side, _ = model.vit.patch_embed.proj.weight.shape
            pixels = channels * side**2
            rows.append({"model": name, "patch_size": side, "pixels": pixels, "embed_dim": width,
                         "null_dim": max(0, pixels - width)})  # fmt: skip
    return pd.DataFrame(rows)
