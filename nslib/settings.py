"""Everything that a run can be asked to do differently, and how a setting is given another value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from nslib.checks import require, require_counts
from nslib.config import (
    DataConfig,
    FinetuneConfig,
    NoiseConfig,
    PretrainConfig,
    SuiteConfig,
    SurrogateConfig,
)
from nslib.studies import (
    ApproximateStudy,
    ClosureStudy,
    FinetuningStudy,
    FingerprintStudy,
    PatchStudy,
    RobustnessStudy,
    SynthesisStudy,
    WatermarkStudy,
)

Part = TypeVar("Part")


@dataclass(frozen=True)
class Settings:
    """Everything a notebook can be asked to do differently. The defaults are those of the `laptop` profile."""

    profile: str = "laptop"
    run_name: str = "laptop"
    seed: int = 0
    device: str = "auto"
    data: DataConfig = DataConfig()
    models: tuple[str, ...] = ("shapes_vit",)
    weights: str = "shipped"  # shipped, pretrained, random, train (from scratch, kept in the store), a file or folder
    img_size: int = 0  # side of the models' images, pixels; 0: that of the weights
    pool: int = 2048  # images of split train to learn noise from
    heldout: int = 512  # further images of split train, for stopping tests
    images: int = 2000  # of split val, for everything reported
    pretrain: PretrainConfig = PretrainConfig()
    surrogate_pretrain: SurrogateConfig = SurrogateConfig()
    patch: PatchStudy = PatchStudy()
    synthesis: SynthesisStudy = SynthesisStudy()
    approximate: ApproximateStudy = ApproximateStudy()
    closure: ClosureStudy = ClosureStudy()
    watermark: WatermarkStudy = WatermarkStudy()
    fingerprint: FingerprintStudy = FingerprintStudy()
    robustness: RobustnessStudy = RobustnessStudy()
    suite: SuiteConfig = SuiteConfig(c_images=100, costly_images=32)
    finetune: FinetuneConfig = FinetuneConfig(rounds=5, steps=20, lr=1e-4, lr_min=1e-5, noise=NoiseConfig(batch=64))
    finetuning: FinetuningStudy = FinetuningStudy()
    surrogate: str = "surrogate_cnn"  # network on which transferred images are made, or a timm tag; empty: none
    surrogate_weights: str = "shipped"  # shipped, pretrained, train, a file or folder

    def __post_init__(self):
        require_counts(self, "pool", "heldout", "images")
        require_counts(self, "img_size", least=0)
        require(len(self.models) > 0, "models", "at least one, such as shapes_vit", self.models)
        study = self.finetuning
        for objective in study.objectives:
            try:
                replace(self.finetune, objective=objective)
            except ValueError as error:
                raise ValueError(f"finetune.{error}; {objective} is among finetuning.objectives") from None
        reported = max(self.images, self.suite.images, study.images, study.wide_images)
        if study.searches and study.search_first < reported:
            raise ValueError(
                f"finetuning.search_first must be >= {reported}, the images of val that are reported, or settings are "
                f"chosen on these, got {study.search_first}"
            )


def overridden(settings: Part, values: Mapping[str, Any]) -> Part:
    """Settings, or a part of them, with other values by dotted name, such as {"synthesis.noise.steps": 100}.

    Raises:
        ValueError: unknown name, or a value of another type than the one there is.
    """
    return _overridden(settings, {name: name.split(".") for name in values}, values, "")


def _near(name: str) -> str:
    """Settings that may be meant by an unknown name, in words: of the same last part, or spelled like it."""
    import pandas as pd  # half a second, which only an error needs

    known = list(pd.json_normalize(asdict(Settings())))
    last = name.rpartition(".")[2]
    near = [k for k in known if k.rpartition(".")[2] == last] + get_close_matches(name, known)
    return f"; near it: {', '.join(dict.fromkeys(near))}" if near else ""


def _overridden(part: Any, paths: Mapping[str, list[str]], values: Mapping[str, Any], place: str) -> Any:
    """A part with its values by what is left of their paths, all at once: some are valid only beside each other. What
    it refuses is told with its place, such as `synthesis.noise.`."""
    known, hints = {f.name: getattr(part, f.name) for f in fields(part)}, get_type_hints(type(part))
    chosen: dict[str, Any] = {}
    deeper: dict[str, dict[str, list[str]]] = {}
    for name, (head, *rest) in paths.items():
        if head in known and is_dataclass(known[head]) and not rest:
            inside = ", ".join(f"{name}.{f.name}" for f in fields(known[head])[:3])
            raise ValueError(f"{name} is a group of settings: name those in it, such as {inside}")
        if head not in known or (rest and not is_dataclass(known[head])):
            raise ValueError(f"no setting {name!r}: {type(part).__name__} has {', '.join(known)}{_near(name)}")
        if rest:
            deeper.setdefault(head, {})[name] = rest
        else:
            chosen[head] = _typed(name, hints[head], known[head], values[name])
    chosen |= {head: _overridden(known[head], inner, values, f"{place}{head}.") for head, inner in deeper.items()}
    try:
        return replace(part, **chosen)
    except ValueError as error:
        raise ValueError(f"{place}{error}") from None


def _typed(name: str, hint: Any, default: Any, value: Any) -> Any:
    """The value in the type of its setting: JSON and command lines know no tuples, and write 1 for 1.0."""
    if get_origin(hint) is tuple:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_typed(name, get_args(hint)[0], default, v) for v in values)
    allowed = get_args(hint) or (hint,)
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) not in allowed:
        raise ValueError(f"setting {name} must be a {allowed[0].__name__} such as {default!r}, got {value!r}")
    return value
