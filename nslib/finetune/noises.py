"""The noise that a round begins with: learned against the model as it is now, or drawn as one of the controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nslib.config import FinetuneConfig
from nslib.finetune.draws import draws
from nslib.machine.processes import Share
from nslib.nullspace.encoder import Memory, Trace, learn_noise
from nslib.nullspace.membership import Pool, agreement, boundary_scale, make_pool, permute, random_noise_at
from nslib.vit.staged import StagedViT

LEARNED = ("learned", "permuted")  # kinds that begin with a search; the others are those of `RANDOM_RULES`


@dataclass(frozen=True)
class NoiseFacts:
    """Of a noise in use: norm, gaps (see `Agreement`) and how many steps the search took and whether it reached eps.

    A permuted noise has steps and `converged` of the learned one of which it is a permutation. A noise that was not
    learned has no gap on a batch and no steps.
    """

    norm: float
    gap_heldout: float
    match_heldout: float
    gap_batch: float | None = None
    steps: int = 0
    converged: bool = True


def pool_of(model: StagedViT, images: Tensor, cfg: FinetuneConfig) -> Pool:
    """The images (pool + heldout, C, H, W) passed through the model as it is now, in the type of its weights.

    Under autocast tokens come in bfloat16, as the noisy ones will.
    """
    pool = make_pool(model, images, heldout=cfg.heldout, batch=cfg.batch)
    weight = model.vit.patch_embed.proj.weight
    return Pool(*(replace(part, tokens=part.tokens.to(weight)) for part in pool))


@dataclass
class Search:
    """The state of a search under way: `begun` is what an earlier one has given to `save`, or nothing."""

    begun: dict[str, Any] = field(default_factory=dict)
    save: Callable[[dict[str, Any]], None] = lambda state: None


def find_noises(
    kind: str,
    model: StagedViT,
    pool: Pool,
    cfg: FinetuneConfig,
    *,
    round_: int,
    last: Tensor | None,
    share: Share,
    search: Search,
    on_step: Callable[[int, Trace], None] | None,
    labels: Tensor | None = None,
) -> tuple[Tensor, list[NoiseFacts]]:
    """The noises (n, N, D) of a round and what they are; lines 2 to 7 of Algorithm 1 where they are learned.

    They are cfg.noises from all of the pool, or one from the images of each of cfg.groups groups of classes.

    Args:
        kind: `learned`, `permuted` (the learned one with its elements in another order), or a rule of
            `random_noise_at`.
        last: the noises of the round before, from which cfg.warm_start begins.
        search: goes on with what was begun, and is told its state every cfg.checkpoint_every steps.
        labels: of the pool's images and the held-out ones, (pool + heldout,); where there are groups.
    Raises:
        ValueError: a group has no image in the pool, or none held out.
        NoiseDiverged, ValueError: as `learn_noise` and `random_noise_at`.
    """
    found = [noise.to(model.device) for noise in search.begun.get("noises", [])]
    facts = [NoiseFacts(**f) for f in search.begun.get("facts", [])]
    begun = search.begun.get("state")

    def save(state: dict[str, Any]) -> None:
        search.save({"noises": found, "facts": [asdict(f) for f in facts], "state": state})

    pools = [pool] * cfg.noises if cfg.groups == 1 else _by_group(pool, labels, cfg.groups)
    for i in range(len(found), len(pools)):
        pool, generator = pools[i], draws(cfg.seed, "noise", round_, i)
        if kind in LEARNED:
            memory, begun = Memory(cfg.checkpoint_every, save, begun), None
            warm = cfg.warm_start and last is not None and not memory.state
            start = share.mean(_past_boundary(model, pool, cfg, last[i : i + 1])) if warm else None
            learned = learn_noise(
                model, pool, cfg.noise, generator=generator, start=start, share=share, memory=memory, on_step=on_step
            )
            noise = learned.noise
            fact = NoiseFacts(learned.norm, learned.gap_heldout, learned.match_heldout, learned.gap_batch,
                              learned.steps, learned.converged)  # fmt: skip
            if kind == "permuted":
                noise = permute(noise, generator=generator)
                fact = replace(fact, **_on_heldout(model, pool, noise), gap_batch=None)
        else:
            drawn = random_noise_at(model, pool.heldout, cfg.noise.eps, rule=kind, generator=generator).noise
            noise = share.mean(drawn)  # where devices round differently, each has scaled it by tests of its own
            fact = NoiseFacts(noise.norm().item(), **_on_heldout(model, pool, noise))
        found.append(noise)
        facts.append(fact)
    return torch.cat(found), facts


def _by_group(pool: Pool, labels: Tensor, groups: int) -> list[Pool]:
    """A pool for each group, that of group j holding the images whose label modulo groups is j."""
    group = (labels % groups).to(pool.train.tokens.device).split([len(part) for part in pool])
    found = []
    for j in range(groups):
        parts = Pool(*(part[mine == j] for part, mine in zip(pool, group, strict=True)))
        for name, setting, part in zip(Pool._fields, ("pool", "heldout"), parts, strict=True):
            if not len(part):
                raise ValueError(
                    f"group {j} of {groups}, labels {j}, {j + groups}, ..., has no image in the {name} part of the "
                    f"pool: raise {setting} or lower groups"
                )
        found.append(parts)
    return found


def _on_heldout(model: StagedViT, pool: Pool, noise: Tensor) -> dict[str, float]:
    held = agreement(model, pool.heldout, noise)
    return {"gap_heldout": held.gap.mean().item(), "match_heldout": held.match.float().mean().item()}


def _past_boundary(model: StagedViT, pool: Pool, cfg: FinetuneConfig, last: Tensor) -> Tensor:
    return last * (boundary_scale(model, pool.heldout, last, cfg.noise.eps).scale * cfg.warm_start)
