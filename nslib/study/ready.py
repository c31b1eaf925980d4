"""What a profile's notebooks would stumble over, told before the first of them starts."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

from nslib.checks import require
from nslib.data.source import open_source
from nslib.evaluate.columns import check_columns
from nslib.finetune.objectives import OBJECTIVES, recipe_of
from nslib.profiles import REAL
from nslib.settings import Settings
from nslib.study.experiment import barely_trained, open_model
from nslib.study.jobs import config_of
from nslib.study.plan import planned

# Settings in whose place notebooks put others.
_REPLACED = {
    "approximate.noise.eps": "each of approximate.eps",
    "synthesis.noise.regularization": "each of synthesis.lambdas",
    "finetune.objective": "each of finetuning.objectives",
    "pretrain.model": "each of models",
    "surrogate_pretrain.size": "the size of the model's images",
}
_SHOWN = ("images", "patch.images", "approximate.reach_images", "watermark.images")  # of val


def check_study(settings: Settings) -> None:
    """Refuse settings that notebooks refuse after hours, and those that they would not heed.

    Raises:
        ValueError: there is no such objective, eps or column, a model of the study cannot be finetuned so, a search
            needs other data than a folder, or others are put in a setting's place.
    """
    for name, instead in _REPLACED.items():
        given, default = attrgetter(name)(settings), attrgetter(name)(Settings())
        if given != default:
            raise ValueError(f"{name} = {given} changes nothing: notebooks put {instead} in its place, set that")
    study = settings.finetuning
    for name in ("objectives", "seeded"):
        for objective in getattr(study, name):
            require(objective in OBJECTIVES, f"finetuning.{name}", f"among {', '.join(OBJECTIVES)}", objective)
    check_columns([*study.columns, *settings.suite.columns])
    require(bool(study.eps), "finetuning.eps", "one or more values", study.eps)
    for name in ("search_few", "search_bases") if settings.data.kind != "shapes" else ():
        given = getattr(study, name)
        require(not given, f"finetuning.{name}", "empty for a folder, these are of shapes", given)
    for one in planned(settings, depth=1):
        recipe_of(config_of(settings, one.objective, one.seed, **one.changes))


def check_images(settings: Settings, *, notebooks: bool = True) -> None:
    """Refuse settings that ask for more images than train or val holds; in a folder its files are counted.

    Args:
        notebooks: count what all of them look at; False: what making their models takes.
    Raises:
        ValueError: there are fewer.
        As `open_model` and `open_source`.
    """
    own, study, suite = settings.finetune, settings.finetuning, settings.suite
    wanted = {
        "train": {"finetune.pool + finetune.heldout and some to train on": own.pool + own.heldout + 1},
        "val": {"robustness.images": settings.robustness.images},
    }
    if notebooks:
        wanted["train"] |= {"pool + heldout": settings.pool + settings.heldout}
        wanted["val"] |= {name: attrgetter(name)(settings) for name in _SHOWN}
        reach = study.reach_blocks * settings.approximate.reach_images
        wanted["val"] |= {"finetuning.reach_blocks x approximate.reach_images": reach}
        wanted["val"] |= {"suite.first + suite.costly_images": suite.first + suite.costly_images}
        if study.searches:
            wanted["val"] |= {"suite.first + finetuning.search_first and some": suite.first + study.search_first + 1}
    told = []
    for split, count in _counts(settings).items():
        more = [f"{name} = {n}" for name, n in wanted[split].items() if count is not None and n > count]
        told += [f"{split} holds {count} images, asked for {', '.join(more)}"] if more else []
    if told:
        small = " (profile imagenet_small asks for a few hundred)" if settings.profile == REAL[0] else ""
        raise ValueError(f"{'; '.join(told)}: lower these by --set NAME=VALUE, or add images{small}")


def _counts(settings: Settings) -> dict[str, int | None]:
    """How many images train and val hold, None where they have no end."""
    if settings.data.kind == "shapes":
        return {"train": settings.data.images or None, "val": None}
    settings.data.check_root()
    counting = replace(barely_trained(settings), device="cpu")  # lest this process holds a GPU through all notebooks
    source = open_source(settings.data, open_model(counting))
    return {split: source.count(split) for split in ("train", "val")}
