"""Learned noises kept on disk, so that notebooks share them and a killed run does not learn them again."""

from __future__ import annotations

from dataclasses import asdict

from nslib.config import NoiseConfig
from nslib.nullspace.encoder import VERSION, LearnedNoise, Trace, learn_noise
from nslib.nullspace.membership import Pool
from nslib.progress import noise_bar
from nslib.runtime import generator
from nslib.staged import StagedViT
from nslib.store import cached, model_digest, tensor_digest


def stored_noise(model: StagedViT, pool: Pool, cfg: NoiseConfig, *, seed: int) -> LearnedNoise:
    """As `learn_noise` with a generator of this seed, once for each model, pool, cfg and seed. Errors as there."""

    def compute() -> dict:
        with noise_bar(cfg) as on_step:
            learned = learn_noise(model, pool, cfg, generator=generator(seed), on_step=on_step)
        return asdict(learned)

    inputs = {
        "model": model_digest(model),
        "pool": tensor_digest(*(t for part in pool for t in (part.tokens, part.logits))),
    }
    values = cached("noise", {"cfg": asdict(cfg), "seed": seed, **inputs}, compute, version=VERSION)
    noise = values["noise"].to(model.device)
    return LearnedNoise(**values | {"noise": noise, "trace": Trace(**values["trace"])})
