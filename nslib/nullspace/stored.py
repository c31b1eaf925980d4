"""Learned noises kept on disk, so that notebooks share them and a killed run goes on with the one it was learning."""

from __future__ import annotations

import time
from dataclasses import asdict

from nslib.config import NoiseConfig
from nslib.machine.progress import noise_bar
from nslib.nullspace.encoder import VERSION, LearnedNoise, Memory, Trace, learn_noise
from nslib.nullspace.membership import Pool
from nslib.runtime import generator, in_store
from nslib.store import cached, digest, load_state, model_digest, save_state, sweep, tensor_digest
from nslib.vit.staged import StagedViT

_STEPS, _SECONDS = 10, 5.0  # between two saved states of a search, at least


def stored_noise(model: StagedViT, pool: Pool, cfg: NoiseConfig, *, seed: int) -> LearnedNoise:
    """As `learn_noise` with a generator of this seed, once for each model, pool, cfg and seed.

    A search that was killed goes on, to the noise of an unbroken one.

    Raises:
        OSError: a state or the noise cannot be written or read; names the file.
        ValueError: the state of a killed search cannot be read; names the file. All else as `learn_noise`.
    """
    inputs = {
        "cfg": asdict(cfg),
        "seed": seed,
        "model": model_digest(model),
        "pool": tensor_digest(*(t for part in pool for t in (part.tokens, part.logits))),
    }
    under_way = in_store("noise", f"{digest([VERSION, inputs])}.search.pt")
    saved = time.monotonic()

    def save(state: dict) -> None:
        nonlocal saved
        if time.monotonic() - saved >= _SECONDS:
            save_state(under_way, inputs, state)
            saved = time.monotonic()

    def compute() -> dict:
        sweep(under_way)
        memory = Memory(_STEPS, save, load_state(under_way) if under_way.is_file() else None)
        with noise_bar(cfg) as on_step:
            learned = learn_noise(model, pool, cfg, generator=generator(seed), memory=memory, on_step=on_step)
        return asdict(learned)

    values = cached("noise", inputs, compute, version=VERSION)
    if under_way.is_file():  # else a store that may only be read will do
        under_way.unlink(missing_ok=True)  # another process may have been first
    noise = values["noise"].to(model.device)
    return LearnedNoise(**values | {"noise": noise, "trace": Trace(**values["trace"])})
