"""Figure 3: noise learned by Eq. (4) at several strengths of the regularisation, beside its controls."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import pandas as pd

from nslib.analysis.controls import mean_agreement, with_controls
from nslib.intervals import Estimate, estimates_of, mean_estimate, share_estimate
from nslib.nullspace.membership import Agreement, CleanPass, Pool, agreement
from nslib.nullspace.stored import stored_noise
from nslib.studies import SynthesisStudy
from nslib.vit.staged import StagedViT


@dataclass(frozen=True)
class Sweep:
    """Figure 3 in numbers. One row a lambda, kind of noise and quantity; norms; permuted minus learned.

    Estimates go by the names of model and lambda: `shapes_vit, λ = 2`.
    """

    table: pd.DataFrame  # model, regularization, noise, quantity, value, low, high, n, seeds
    norms: pd.DataFrame  # model, regularization, start, norm, gap_batch (of the last batch), steps
    damage: dict[str, Estimate]  # paired difference of gaps on the same images, permuted minus learned

    def estimates(self, noise: str, quantity: str) -> dict[str, Estimate]:
        """Estimates of one curve, by name."""
        rows = self.table[(self.table.noise == noise) & (self.table.quantity == quantity)]
        return dict(zip(map(_named, rows.model, rows.regularization), estimates_of(rows), strict=True))


def _named(model: str, strength: float) -> str:
    return f"{model}, λ = {strength:g}"


def lambda_sweep(model: StagedViT, pool: Pool, clean: CleanPass, study: SynthesisStudy, *, seed: int) -> Sweep:
    """Learn a noise for every lambda and start, and measure it on images that no noise was learned from.

    `learned` is measured on `clean`, `pool` is the same noise on as many of its own training images, or all if there
    are fewer.

    Source: arXiv:2403.10476, Section 3.3, Eq. (4), Figure 3.
    """
    rows, norms, damage = [], [], {}
    own = pool.train[: len(clean)]
    for strength in study.lambdas:
        cfg = replace(study.noise, regularization=strength)
        learned = [stored_noise(model, pool, cfg, seed=seed + start) for start in range(study.starts)]
        kinds = with_controls(model, clean, [found.noise for found in learned], seed=seed)
        kinds["pool"] = mean_agreement([agreement(model, own, found.noise) for found in learned])
        key = {"model": model.name, "regularization": strength}
        rows += [key | row for kind, found in kinds.items() for row in _rows(kind, found, study.starts)]
        difference = kinds["permuted"].gap - kinds["learned"].gap
        damage[_named(model.name, strength)] = mean_estimate(difference.cpu(), seeds=study.starts)
        norms += [
            key | {"start": i, "norm": found.norm, "gap_batch": found.gap_batch, "steps": found.steps}
            for i, found in enumerate(learned)
        ]
    return Sweep(pd.DataFrame(rows), pd.DataFrame(norms), damage)


def _rows(kind: str, found: Agreement, starts: int) -> list[dict]:
    estimates = {
        "match": share_estimate(found.match.cpu(), seeds=starts),
        "gap": mean_estimate(found.gap.cpu(), seeds=starts),
    }
    return [{"noise": kind, "quantity": name} | asdict(estimate) for name, estimate in estimates.items()]
