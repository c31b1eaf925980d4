"""Models by name, and their weights: shipped, of timm, from a file, or random."""

from __future__ import annotations

import json
import os
import re
from difflib import get_close_matches
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer
from torch import Tensor, nn

from nslib.runtime import atomic_path, data_path
from nslib.staged import EXPECTED, StagedViT
from nslib.store import check_beside

SHAPES_VIT = "shapes_vit"  # the model that ships with the package
_SHAPES_VIT_ARCHITECTURE = dict(img_size=48, patch_size=12, embed_dim=128, depth=6, num_heads=4, num_classes=10)
_PICKLES = {".pt", ".pth", ".bin", ".tar", ".pkl", ".ckpt"}
_NORMALISATION = "normalisation"  # in the metadata of a file of weights: mean and std as JSON
_CLASSES = "classes"  # there too: the names of a head's own classes


def build_model(name: str, *, num_classes: int | None = None, img_size: int | None = None, **kwargs) -> StagedViT:
    """An untrained model by name: `shapes_vit` or any tag of timm; mean and std are the tag's own.

    Raises:
        ValueError: timm knows no such model.
        TypeError: it is no VisionTransformer.
    """
    given = {k: v for k, v in kwargs.items() if not k.startswith("pretrained")}
    kwargs |= {k: v for k, v in (("num_classes", num_classes), ("img_size", img_size)) if v is not None}
    if name == SHAPES_VIT:
        vit, mean, std = VisionTransformer(**(_SHAPES_VIT_ARCHITECTURE | kwargs)), (0.5,) * 3, (0.5,) * 3
    else:
        vit = _of_timm(name, kwargs)
        mean, std = (vit.pretrained_cfg[key] for key in ("mean", "std"))
    if (channels := kwargs.get("in_chans", 3)) != len(mean):  # each has the mean of the tag's
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
    model = StagedViT(vit, mean=mean, std=std, name=name)
    # Two tags of the same weights may differ in their activation alone.
    unusual = {type(m.act).__name__ for m in vit.modules() if hasattr(m, "act")} - {"GELU"}
    model.architecture = given | ({"activation": sorted(unusual)} if unusual else {})
    return model


def _of_timm(name: str, kwargs: dict) -> nn.Module:
    try:
        return timm.create_model(name, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name} cannot be made with {kwargs} ({error}): {EXPECTED}") from error
    except RuntimeError as error:
        if "Unknown model" not in str(error) and "Invalid pretrained tag" not in str(error):
            raise
        architecture, _, tag = name.partition(".")
        if tag and timm.is_model(architecture):
            known = timm.list_pretrained(f"{architecture}.*")
            raise ValueError(
                f"{architecture} has no tag {tag!r} in timm {timm.__version__}: {', '.join(known)}"
            ) from error
        near = get_close_matches(architecture, [SHAPES_VIT, *timm.list_models(module="vision_transformer")], n=4)
        told = f"; near it: {', '.join(near)}" if near else f": take {SHAPES_VIT} or a plain ViT of timm.list_models()"
        raise ValueError(f"no model named {name!r} in timm {timm.__version__}{told}") from error


def load_model(
    name: str = SHAPES_VIT,
    weights: str | Path | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    **architecture,
) -> StagedViT:
    """A model ready for use, in evaluation mode.

    Mean and std are those in the metadata of a file that `save_weights` wrote, else those of the tag.

    Args:
        name: `shapes_vit`, or a full timm tag such as `vit_tiny_patch16_224.augreg_in21k_ft_in1k`.
        weights: `shipped` (default for `shapes_vit`), `pretrained` (timm's hub, default for tags), `random`, a
            safetensors file, or a folder that holds `<name>.safetensors`.
        num_classes: default: as the file's head, else as the tag's.
        seed: of the random initialisation, also of a head for which there are no weights.
        architecture: further arguments of timm's model, such as depth.
    Raises:
        FileNotFoundError: the weights file is missing, or nothing ships for this name.
        ValueError: the file is no safetensors file, is truncated, or belongs to another architecture.
        ConnectionError: the hub cannot be reached.
    """
    weights = weights or ("shipped" if name == SHAPES_VIT else "pretrained")
    kwargs = dict(num_classes=num_classes, img_size=img_size, **architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _from_hub(name, kwargs) if str(weights) == "pretrained" else build_model(name, **kwargs)
        if str(weights) not in ("pretrained", "random"):
            model = _with_weights(model, weights_path(name, weights), any_head=num_classes is None)
    return model.to(device).eval()


def _from_hub(name: str, kwargs: dict) -> StagedViT:
    if name == SHAPES_VIT:
        raise ValueError(
            f"{SHAPES_VIT} is not on a hub: name a model that is (--model TAG), or pass weights (--weights) shipped, "
            "random or a safetensors file"
        )
    build_model(name, **kwargs)  # an unknown name is told apart from a network that is down
    try:
        model = build_model(name, **kwargs, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"pretrained weights of {name} could not be fetched ({first_line(error)}): "
            f"pass weights= a safetensors file or a folder with {name}.safetensors, or 'random'"
        ) from error
    model.stored_dtype = _shortest_type(model.vit.patch_embed.proj.weight)
    return model


def first_line(error: Exception) -> str:
    """What an error says, in short; its kind where it says nothing."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch colours some of its words
    return next(iter(plain.strip().splitlines()), type(error).__name__)


def _shortest_type(weight: Tensor) -> torch.dtype:
    """The type in which a hub's file must have held weights, which timm has converted: the coarsest that holds them."""
    halves = (torch.bfloat16, torch.float16)
    return next((dtype for dtype in halves if torch.equal(weight.to(dtype).to(weight), weight)), weight.dtype)


def is_pickle(path: str | Path) -> bool:
    """Whether a file is, by its name, what `torch.save` writes: a training checkpoint."""
    return Path(path).suffix.lower() in _PICKLES


def weights_path(name: str, weights: str | Path) -> Path:
    """The safetensors file meant: `shipped`, a file, or a folder that holds `<name>.safetensors`.

    Raises:
        FileNotFoundError: it is missing, or nothing ships for this name.
        ValueError: it is a pickle.
    """
    if str(weights) == "shipped":
        path = data_path("checkpoints", f"{name}.safetensors")
        if not path.is_file():
            raise FileNotFoundError(f"no weights ship for {name!r}, only for {SHAPES_VIT}: pass weights (--weights), "
                                    "pretrained, a safetensors file or a folder of them")  # fmt: skip
        return path
    path = Path(weights).expanduser()
    if path.is_dir():
        path = path / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}: pass a safetensors file, a folder that holds {name}.safetensors, "
            "'pretrained' or 'random'"
        )
    if is_pickle(path):
        raise ValueError(
            f"{path} is a pickle, which can run code when opened: take nslib.load_checkpoint, or convert it once with "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')"
        )
    return path


def _with_weights(model: StagedViT, path: Path, *, any_head: bool) -> StagedViT:
    try:
        state = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        size = os.path.getsize(path)
        raise ValueError(
            f"{path} ({size} bytes) is truncated or no safetensors file ({error}): fetch it again"
        ) from error
    normalisation = json.loads(metadata.get(_NORMALISATION, "{}"))
    model = put_weights(model, state, path, any_head=any_head, normalisation=normalisation)
    model.classes = tuple(json.loads(metadata.get(_CLASSES, "[]")))
    return model


def put_weights(
    model: StagedViT, state: dict[str, Tensor], path: str | Path, *, any_head: bool, normalisation: dict
) -> StagedViT:
    """A model with weights by timm's names; they are loaded into the one that is given.

    Args:
        path: the file that they come from, for errors.
        any_head: whether the head may have another number of classes than the model's, which then takes it.
        normalisation: mean and std of the file; empty where it has none, for the model's own.
    Raises:
        ValueError: they belong to another architecture.
    """
    classes = len(state["head.weight"]) if "head.weight" in state else model.num_classes
    if any_head and classes != model.num_classes:
        model.give_head(classes)
    own = model.vit.state_dict()
    wrong = [f"{k} {tuple(v.shape)}, expected {tuple(own[k].shape)}" for k, v in state.items()
             if k in own and v.shape != own[k].shape]  # fmt: skip
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    if wrong or missing or unknown:
        wrong_beyond_head = [name for name in (*wrong, *missing, *unknown) if not name.startswith("head.")]
        told = [f"{len(part)} {kind} ({sorted(part)[0]})" for kind, part in
                (("missing", missing), ("unknown", unknown), ("of another shape", wrong)) if part]  # fmt: skip
        remedy = "name the model that it was made for, in Python with its img_size, or another file"
        if not wrong_beyond_head:
            as_it_is = "with num_classes=0" if "head.weight" in missing else "without num_classes"
            remedy = f"load it {as_it_is}, then give it a head by nslib.models.reset_head"
        raise ValueError(f"{path} does not fit {model.name}: tensors {', '.join(told)}; {remedy}")
    model.vit.load_state_dict(state)
    if normalisation:
        model = StagedViT(model.vit, **normalisation, name=model.name).built_as(model)
    model.stored_dtype = state["patch_embed.proj.weight"].dtype
    return model


def check_target(target: Path | None) -> None:
    """Refuse a file of weights to write under whose name its record and saved state would not find their own.

    Raises:
        ValueError: it does not end in .safetensors, or is a folder; or where its record and log will lie are files that
            no run has written.
    """
    if target is None:
        return
    if target.suffix != ".safetensors":
        raise ValueError(f"target must end in .safetensors, got {target}")
    if target.is_dir():
        raise ValueError(f"target must be a file, got the folder {target}")
    if not target.exists() and not target.with_suffix(".training.pt").exists():
        check_beside(target, ".json", ".jsonl")


def save_weights(model: StagedViT, path: Path) -> None:
    """Write weights that timm loads, and in the file's metadata mean, std and, of a head's own classes, the names.

    Raises:
        OSError: the file cannot be written; what was there before is kept.
    """
    normalisation = json.dumps({key: getattr(model, key).flatten().tolist() for key in ("mean", "std")})
    state = {name: w.cpu().contiguous() for name, w in model.vit.state_dict().items()}
    with atomic_path(path) as partial:
        classes = {_CLASSES: json.dumps(model.classes)} if model.classes else {}
        save_file(state, partial, metadata={_NORMALISATION: normalisation, **classes})


def reset_head(model: StagedViT, num_classes: int, *, seed: int = 0) -> None:
    """Give a model an untrained head, in place; one that has this number of classes already keeps its own, for classes
    of whatever names.

    Raises:
        ValueError: num_classes below 1.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be >= 1, got {num_classes}")
    if num_classes == model.num_classes:
        model.classes = ()
        return
    device = model.device
    with torch.random.fork_rng(devices=[]):  # drawn on the CPU, the same for every device
        torch.manual_seed(seed)
        model.cpu().give_head(num_classes)
    model.to(device)


def weights_record(name: str = SHAPES_VIT) -> dict:
    """The record beside shipped weights: configuration, seed, steps, accuracy on every split, versions."""
    return json.loads(data_path("checkpoints", f"{name}.json").read_text(encoding="utf-8"))
