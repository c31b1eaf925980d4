"""What the updates of a round minimise: the paper's objective, its baselines and its controls, one entry each.

The weights of the cross-entropies of each loss add up to two, as in Algorithm 1, so that gradient clipping, the one
part of the recipe that depends on the scale of a loss, treats all alike: `plain` is the paper's loss at v = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nslib.attacks.budget import project, random_point
from nslib.attacks.gradient import pgd
from nslib.config import FinetuneConfig, NoiseConfig
from nslib.description import short
from nslib.finetune.noises import LEARNED
from nslib.nullspace.membership import RANDOM_RULES
from nslib.settings import overridden
from nslib.vit.staged import StagedViT, frozen


class View(NamedTuple):
    """What a loss sees: images (B, C, H, W), targets (B,) or (B, K), and where the objective has them a noise
    (1, N, D), or one for each image (B, N, D), which takes no gradient, and adversarial images (B, C, H, W)."""

    images: Tensor
    targets: Tensor
    noise: Tensor | None = None
    adversarial: Tensor | None = None


Loss = Callable[[StagedViT, View, FinetuneConfig], Tensor]
Attack = Callable[[StagedViT, View, FinetuneConfig, torch.Generator], Tensor]


def clean(model: StagedViT, view: View, cfg: FinetuneConfig) -> Tensor:
    """2 CE(f(x), y)."""
    return 2 * F.cross_entropy(model(view.images), view.targets)


def clean_and_noised(model: StagedViT, view: View, cfg: FinetuneConfig) -> Tensor:
    """CE(z, y) + CE(z', y), z' from the same tokens plus the noise: line 11 of Algorithm 1.

    The patch embedding is computed once. Both branches go through the encoder as one batch where that saves launches
    of kernels, on a GPU, and one after the other on a CPU, whose caches hold one better.
    """
    tokens = model.embed(view.images)
    noised = tokens + view.noise
    if tokens.is_cuda:
        return _both(model.logits_from_tokens(torch.cat([tokens, noised])), view.targets)
    return sum(F.cross_entropy(model.logits_from_tokens(u), view.targets) for u in (tokens, noised))


def adversarial(model: StagedViT, view: View, cfg: FinetuneConfig) -> Tensor:
    """2 CE(f(x'), y). Source: Madry et al. 2018, arXiv:1706.06083."""
    return 2 * F.cross_entropy(model(view.adversarial), view.targets)


def clean_and_adversarial(model: StagedViT, view: View, cfg: FinetuneConfig) -> Tensor:
    """CE(f(x), y) + CE(f(x'), y): what the authors' code trains in its row "Madry"."""
    return _both(model(torch.cat([view.images, view.adversarial])), view.targets)


def trades(model: StagedViT, view: View, cfg: FinetuneConfig) -> Tensor:
    """2 CE(f(x), y) + 2 beta KL(f(x) || f(x')). Source: Zhang et al. 2019, arXiv:1901.08573."""
    z, other = model(torch.cat([view.images, view.adversarial])).chunk(2)
    return 2 * F.cross_entropy(z, view.targets) + 2 * cfg.trades_beta * _divergence(z, other) / len(z)


def _both(logits: Tensor, targets: Tensor) -> Tensor:
    return 2 * F.cross_entropy(logits, torch.cat([targets, targets]))


def _divergence(z: Tensor, other: Tensor) -> Tensor:
    """Sum over images of KL(softmax z || softmax other)."""
    return F.kl_div(other.log_softmax(1), z.log_softmax(1), reduction="sum", log_target=True)


def against_labels(model: StagedViT, view: View, cfg: FinetuneConfig, generator: torch.Generator) -> Tensor:
    """PGD on the cross-entropy from a random start; of mixed targets the class with the largest share is attacked."""
    labels = view.targets if view.targets.ndim == 1 else view.targets.argmax(1)
    return pgd(model, view.images, labels, eps=cfg.attack_eps, step=cfg.attack_step, steps=cfg.attack_steps,
               random_start=True, generator=generator)  # fmt: skip


def against_itself(model: StagedViT, view: View, cfg: FinetuneConfig, generator: torch.Generator) -> Tensor:
    """Projected sign ascent on KL(f(x) || f(x')) from a random start: the inner problem of TRADES, labels unseen."""
    images = view.images
    points = random_point(images, cfg.attack_eps, "linf", generator)
    with torch.enable_grad(), frozen(model):
        z = model(images)
        for _ in range(cfg.attack_steps):
            points = points.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(_divergence(z, model(points)), points)
            points = project(points + cfg.attack_step * gradient.sign(), images, cfg.attack_eps, "linf")
    return points.detach()


@dataclass(frozen=True)
class Objective:
    """A loss, and what it needs.

    A finetuned model is known again by the name of its objective, and by the code of one that is not of this module.

    Args:
        noise: which kind of noise a round begins with, see `find_noises`; empty: none.
        attack: makes the adversarial images of each batch, the model being in evaluation mode.
        sharpness: take the gradient at the worst point within sam_rho of the weights.
        recipe: settings of this row of the paper's tables, by dotted name, where they are not set otherwise.
    Raises:
        ValueError: no such kind of noise, or a recipe for what is no setting of finetuning or cannot have that value.
    """

    loss: Loss
    noise: str = ""
    attack: Attack | None = None
    sharpness: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        kinds, settings = ("", *LEARNED, *RANDOM_RULES), [f.name for f in fields(FinetuneConfig)]
        if self.noise not in kinds:
            known = ", ".join(kinds[1:])
            raise ValueError(f"noise of an objective must be one of {known}, or empty, got {self.noise!r}")
        if unknown := [name for name in self.recipe if name.partition(".")[0] not in settings]:
            raise ValueError(f"recipe of an objective names {', '.join(unknown)}: settings are {', '.join(settings)}")
        overridden(FinetuneConfig(), self.recipe)

    @property
    def learns(self) -> bool:
        """Whether a round begins with a search for noise."""
        return self.noise in LEARNED


OBJECTIVES: dict[str, Objective] = {
    "nullspace": Objective(clean_and_noised, noise="learned"),
    # Stopped as the paper's noise, whose last batch alone says whether it is inside eps.
    "nullspace_by_batch": Objective(clean_and_noised, noise="learned", recipe={"noise.stop_on": "batch"}),
    "permuted": Objective(clean_and_noised, noise="permuted"),
    "random": Objective(clean_and_noised, noise="authors"),
    "random_boundary": Objective(clean_and_noised, noise="boundary"),
    "plain": Objective(clean),
    "madry": Objective(adversarial, attack=against_labels),
    "madry_authors": Objective(clean_and_adversarial, attack=against_labels),
    "trades": Objective(trades, attack=against_itself),
    "mixup": Objective(clean, recipe={"mixup": 0.8}),
    "randaugment": Objective(clean, recipe={"augment": "rand-m9-mstd0.5-inc1"}),
    "augmix": Objective(clean, recipe={"augment": "augmix-m3-w3"}),  # its images, without its Jensen-Shannon loss
    "sam": Objective(clean, sharpness=True),
}


_SHIPPED = dict(OBJECTIVES)
_LOSSES = (clean, clean_and_noised, adversarial, clean_and_adversarial, trades)
_ATTACKS = (against_labels, against_itself)


def own_code(objective: str) -> dict[str, str]:
    """A digest of the code of an objective of a user's own, by which it is told from others that had its name; empty
    for those of this module, and where there is none of that name."""
    found = OBJECTIVES.get(objective)
    return {} if found is _SHIPPED.get(objective) else {"objective": short(found)}


def idle(objective: str) -> list[str]:
    """Settings on which no weight of an objective depends, by dotted name; none of one with a loss or attack of a
    user's own, which may take any."""
    found = OBJECTIVES.get(objective)
    if found is None or found.loss not in _LOSSES or found.attack not in (None, *_ATTACKS):
        return []
    attack = (f.name for f in fields(FinetuneConfig) if f.name.startswith("attack_"))
    taken = {
        **{f"noise.{f.name}": found.learns for f in fields(NoiseConfig)},
        **dict.fromkeys(("noise.eps", "noises", "block", "groups"), bool(found.noise)),
        **dict.fromkeys(attack, found.attack is not None),
        "warm_start": found.learns,
        "trades_beta": found.loss is trades,
        "sam_rho": found.sharpness,
    }
    return [name for name, used in taken.items() if not used]


ADVERSARIAL = tuple(name for name, objective in OBJECTIVES.items() if objective.attack)  # trained on such images


def recipe_of(cfg: FinetuneConfig) -> tuple[Objective, FinetuneConfig]:
    """The objective of a configuration, and the configuration with the objective's recipe.

    Raises:
        ValueError: no such objective; or one whose noise needs an eps, without one.
    """
    if cfg.objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {cfg.objective!r}")
    objective, cfg = OBJECTIVES[cfg.objective], with_recipe(cfg)
    if cfg.noise.eps is None and (objective.noise in RANDOM_RULES or cfg.warm_start):
        what = "warm_start" if cfg.warm_start else f"objective {cfg.objective}"
        raise ValueError(f"{what} needs the eps up to whose boundary a noise is scaled: set noise.eps (--set "
                         "finetune.noise.eps), such as 0.03")  # fmt: skip
    return objective, cfg


def with_recipe(cfg: FinetuneConfig) -> FinetuneConfig:
    """The configuration with what its objective's recipe sets, where it is at its default, and without what is idle."""
    recipe = OBJECTIVES[cfg.objective].recipe if cfg.objective in OBJECTIVES else {}
    unset = (name for name in recipe if attrgetter(name)(cfg) == attrgetter(name)(FinetuneConfig))
    reset = {name: attrgetter(name)(FinetuneConfig) for name in idle(cfg.objective)}
    return overridden(cfg, reset | {name: recipe[name] for name in unset})


def unheeded(cfg: FinetuneConfig, names: Collection[str]) -> list[str]:
    """In words, which of these settings, by dotted name, `with_recipe` gives another value than they were given."""
    taken, found = with_recipe(cfg), []
    for name in names:
        given, used = attrgetter(name)(cfg), attrgetter(name)(taken)
        if given != used:
            instead = "" if name in idle(cfg.objective) else f", which trains with {used}"
            found.append(f"{name} = {given} changes nothing of objective {cfg.objective}{instead}")
    return found
