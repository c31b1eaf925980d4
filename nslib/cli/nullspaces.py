"""Commands that look into the nullspaces of one model."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from nslib.cli.options import check_out, show_facts
from nslib.config import DataConfig, NoiseConfig


def nulldim(model: str = "shapes_vit", weights: str = "", tol: float | None = None) -> int:
    """Print the dimension of the nullspace of a model's patch embedding.

    Args:
        model: shapes_vit or a timm tag.
        weights: shipped, pretrained, random, a safetensors file, a checkpoint, or a folder of <model>.safetensors.
        tol: singular values up to this count as zero; default: by the precision of the weights.
    """
    from nslib.models import load_model
    from nslib.nullspace.patch import PatchNullspace

    null = PatchNullspace(load_model(model, weights or None), tol=tol)
    width, pixels = null.matrix.shape
    print(f"{model}: patch {null.patch_shape} = {pixels} -> width {width}")
    print(f"rank {null.rank} + null dimension {null.dim} = {pixels}")
    values = null.singular_values
    print(f"singular values {values[0]:.4g} ... {values[-1]:.4g}, counted as zero up to {null.tol:.3g}")
    return 0


def noise(
    model: str = "shapes_vit",
    weights: str = "",
    imagenet: str = "",
    pool: int = 1024,
    heldout: int = 256,
    seed: int = 0,
    device: str = "auto",
    out: str = "noise.safetensors",
    noise: NoiseConfig = NoiseConfig(),
) -> int:
    """Learn a noise that a model does not notice, and save it with its record; a second call goes on where a killed one
    was.

    Args:
        model: shapes_vit or a timm tag.
        weights: shipped, pretrained, random, a safetensors file, a checkpoint, or a folder of <model>.safetensors.
        imagenet: ImageNet-style folder whose train/ is read; default: the embedded data, for models that fit it.
        pool: images to learn from.
        heldout: further images, for the stopping test.
        seed: of start, batches and data.
        device: auto, cpu, cuda or mps.
        out: the safetensors file to write; its record goes beside it as .json.
        noise: how it is learned.
    """
    from safetensors.torch import save_file

    from nslib.data.source import open_source
    from nslib.models import load_model
    from nslib.nullspace.membership import make_pool
    from nslib.nullspace.stored import stored_noise
    from nslib.runtime import atomic_path, pick_device, run_record, to_json, write_text
    from nslib.store import check_beside

    path = check_out(out, ".safetensors", beside=".json")
    _check_no_weights(path)
    check_beside(path, ".json")
    vit = load_model(model, weights or None, device=pick_device(device))
    data = DataConfig(kind="folder" if imagenet else "shapes", root=imagenet, seed=seed)
    images, _ = open_source(data, vit).take("train", pool + heldout)
    learned = stored_noise(vit, make_pool(vit, images, heldout=heldout), noise, seed=seed)
    facts = {k: v for k, v in asdict(learned).items() if k not in ("noise", "trace")}
    with atomic_path(path) as partial:
        save_file({"noise": learned.noise.cpu().contiguous()}, partial)
    told = {"weights": Path(weights).name, "data": replace(data, root=Path(imagenet).name)}  # where they lay is no fact
    record = run_record(noise, model=model, **told, pool=pool, heldout=heldout, seed=seed, result=facts)
    write_text(path.with_suffix(".json"), to_json(record) + "\n")
    show_facts(out, facts)
    return 0


def _check_no_weights(out: Path) -> None:
    """Refuse to replace a file that holds something else than a noise."""
    from safetensors import SafetensorError, safe_open

    if not out.is_file():
        return
    try:
        with safe_open(out, "pt") as file:
            names = set(file.keys())
    except SafetensorError:  # half a file, say
        return
    if names != {"noise"}:
        raise ValueError(f"{out} holds other tensors than a noise, weights perhaps: write to another --out")
