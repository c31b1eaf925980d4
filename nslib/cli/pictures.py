"""Commands that hide one picture in another, and tell models apart by what they do not see."""

from __future__ import annotations

from pathlib import Path


def watermark(
    source: str, mark: str, out: str, model: str = "shapes_vit", weights: str = "", strength: float = 0.3
) -> int:
    """Lay a mark over a picture where the model does not see it.

    Args:
        source: the picture, PNG or JPEG of the model's image size.
        mark: the mark, a picture of the same size.
        out: the PNG to write.
        model: shapes_vit or a timm tag.
        weights: shipped, pretrained, random, a safetensors file, or a folder of <model>.safetensors.
        strength: share of the mark, above 0 and at most 1.
    """
    return _laid_over(source, mark, out, model, weights, strength)


def disguise(
    source: str, target: str, out: str, model: str = "shapes_vit", weights: str = "", strength: float = 1.0
) -> int:
    """Make a picture look like another one while the model goes on seeing the first.

    Args:
        source: the picture that the model is to see, PNG or JPEG of its image size.
        target: the picture to look like, of the same size.
        out: the PNG to write.
        model: shapes_vit or a timm tag.
        weights: shipped, pretrained, random, a safetensors file, or a folder of <model>.safetensors.
        strength: how far towards the target, above 0 and at most 1.
    """
    return _laid_over(source, target, out, model, weights, strength)


def _laid_over(source: str, target: str, out: str, model: str, weights: str, strength: float) -> int:
    from nslib.analysis.watermark import disguise_file
    from nslib.models import load_model

    told = disguise_file(load_model(model, weights or None), Path(source), Path(target), Path(out), strength=strength)
    print(f"{out}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in told.items()))
    return 0


def fingerprint(key: str, models: tuple[str, ...] = (), model: str = "shapes_vit", weights: str = "") -> int:
    """Tell by its nullspace whether a model is the one of a key, or make the key.

    Args:
        key: the key file; made from the model if it is not there.
        models: safetensors files to compare, all of the architecture of --model.
        model: shapes_vit or a timm tag, whose key is made.
        weights: shipped, pretrained, random, a safetensors file, or a folder of <model>.safetensors.
    """
    from nslib.analysis.fingerprint import fingerprint_table, make_key, read_key, write_key
    from nslib.models import load_model

    if not Path(key).is_file():
        print(f"{write_key(key, make_key(load_model(model, weights or None)))}: key of {model}; keep it to yourself")
    suspects = {path: load_model(model, path) for path in models} or {model: load_model(model, weights or None)}
    print(fingerprint_table(read_key(key), suspects).round(4).to_string(index=False))
    return 0
