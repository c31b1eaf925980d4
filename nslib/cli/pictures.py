"""Commands that hide one picture in another, and tell models apart by what they do not see."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from nslib.cli.options import Suspects, show_facts


def watermark(
    source: str, mark: str, out: str, model: str = "shapes_vit", weights: str = "", strength: float = 0.3
) -> int:
    """Lay a mark over a picture where the model does not see it; psnr is that to the plain blend of the two.

    Args:
        source: the picture, PNG or JPEG of the model's image size.
        mark: the mark, a picture of the same size.
        out: the PNG to write.
        model: shapes_vit or a timm tag.
        weights: shipped, pretrained, random, a safetensors file, a checkpoint, or a folder of <model>.safetensors.
        strength: share of the mark, above 0 and at most 1.
    """
    return _laid_over(source, mark, out, model, weights, strength)


def disguise(
    source: str, target: str, out: str, model: str = "shapes_vit", weights: str = "", strength: float = 1.0
) -> int:
    """Draw a picture towards another one, as far as the model does not see it; psnr is that to the aim.

    How near it comes depends on the model: `psnr_before` is that of the source itself.

    Args:
        source: the picture that the model is to see, PNG or JPEG of its image size.
        target: the picture towards which it is drawn, of the same size.
        out: the PNG to write.
        model: shapes_vit or a timm tag.
        weights: shipped, pretrained, random, a safetensors file, a checkpoint, or a folder of <model>.safetensors.
        strength: how far towards the target, above 0 and at most 1.
    """
    return _laid_over(source, target, out, model, weights, strength)


def _laid_over(source: str, target: str, out: str, model: str, weights: str, strength: float) -> int:
    from nslib.analysis.watermark import disguise_file
    from nslib.models import load_model

    told = disguise_file(load_model(model, weights or None), Path(source), Path(target), Path(out), strength=strength)
    show_facts(out, told)
    return 0


def fingerprint(key: str, models: Suspects = (), model: str = "shapes_vit", weights: str = "") -> int:
    """Make the key of a model from its nullspace; or, with --models, tell which models a key belongs to.

    Args:
        key: the key file; without --models it is made, and must not be there yet.
        models: suspects to compare with the key: shapes_vit or a timm tag, with the weights of --weights; TAG=FILE, or
            another of the choices of --weights; or a safetensors file of the architecture of --model.
        model: shapes_vit or a timm tag.
        weights: shipped, pretrained, random, a safetensors file, a checkpoint, or a folder of <model>.safetensors.
    """
    from nslib.analysis.fingerprint import fingerprint_table, make_key, read_key, write_key
    from nslib.models import load_model

    named = list(chain.from_iterable(models))
    if named:
        kept = read_key(key)
        suspects = {told: load_model(*_tag_and_weights(told, model, weights)) for told in named}
        print(fingerprint_table(kept, suspects).round(4).to_string(index=False))
    elif Path(key).expanduser().exists():
        raise FileExistsError(f"{key} is there already: name models to compare with it by --models, or another --key")
    else:
        print(f"{write_key(key, make_key(load_model(model, weights or None)))}: key of {model}; keep it to yourself")
    return 0


def _tag_and_weights(told: str, model: str, weights: str) -> tuple[str, str | None]:
    """What a suspect means: TAG=WEIGHTS, a file of the model's architecture, or a tag."""
    if Path(told).is_file():
        return model, told
    tag, named, own = told.partition("=")
    if named:
        return tag, own
    return (model, told) if told.endswith(".safetensors") else (told, weights or None)
