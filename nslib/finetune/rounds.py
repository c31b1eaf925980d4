"""Algorithm 1: rounds of learning a noise that the model does not notice, and of training the model with it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nslib.config import FinetuneConfig
from nslib.data.source import Source, check_source, own_classes
from nslib.finetune.board import Board
from nslib.finetune.cost import metered
from nslib.finetune.draws import draws, number, seeded
from nslib.finetune.noises import Search, find_noises, pool_of
from nslib.finetune.objectives import own_code, recipe_of
from nslib.finetune.precision import computing_in, resolved
from nslib.finetune.result import Log, finished, write_result
from nslib.finetune.state import Place, Round, StateFile, identity_of
from nslib.finetune.stream import Stream
from nslib.finetune.updates import Trainer
from nslib.machine.makers import only_maker
from nslib.machine.processes import ALONE, Share
from nslib.nullspace.encoder import NoiseDiverged, Trace
from nslib.store import model_digest, timeless
from nslib.vit.staged import StagedViT, check_staged
from nslib.vit.weights import check_target


@dataclass(frozen=True)
class Moment:
    """Where a run is, for a progress bar: before a noise step (phase `noise`), or after an update (`update`)."""

    round: int
    phase: str
    step: int
    values: dict[str, float]  # gap, norm and loss of the noise; loss and learning rate of the update


@dataclass(frozen=True)
class Finetuned:
    """The model in evaluation mode, what happened in each round, and the record that lies beside the target; `found`:
    it lay there already."""

    model: StagedViT
    history: list[Round] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    found: bool = False


class FinetuneDiverged(FloatingPointError):
    """A loss was not finite. `model` has the weights with which the round began, or went on after a stop, not their
    average; `round`, from 0 as in the log, and `step`, of updates from 1, say where, and the message names the last
    good state, which stands in the way of another try, and after the first round a file of these weights,
    `.good.safetensors`, from which one can start.
    """

    def __init__(self, place: Place, model: StagedViT, error: FloatingPointError, last_good: str, weights: str):
        learning = isinstance(error, NoiseDiverged)
        self.round, self.step, self.model = place.round, error.step if learning else place.step, model
        where, told = ("noise step", f"loss {error.loss}") if learning else ("update", error)
        remedy = "noise.lr or noise.limit" if learning else "lr or clip"
        advice = [f"lower {remedy}"]
        if last_good:
            advice.append(f"other settings cannot go on from the last good state, remove it then: {last_good}")
        if weights:
            advice.append(f"with another target they can start from the weights before this round: {weights}")
        super().__init__(f"round {self.round}, {where} {self.step}: {told}; {'; '.join(advice)}")


@torch.enable_grad()
def finetune_model(
    model: StagedViT,
    source: Source,
    cfg: FinetuneConfig,
    *,
    target: Path | str | None = None,
    share: Share = ALONE,
    on_step: Callable[[Moment], None] | None = None,
    on_noise: Callable[[int, StagedViT, Tensor], dict[str, Any] | None] | None = None,
    on_round: Callable[[int, StagedViT], dict[str, Any] | None] | None = None,
) -> Finetuned:
    """Finetune a copy of a model: K rounds of finding a noise and of S updates with it.

    With a target the state is saved beside it before and after each learning of noise, in both phases every
    cfg.checkpoint_every steps, and before each `on_round`. A run that was stopped in any way goes on from there, and on
    a CPU ends with the weights of an unbroken one, bit for bit. At the end `target` is a safetensors file that timm
    loads, `.json` its record and `.jsonl` its log, as is the folder `.tensorboard` where that package is installed.
    Where the target was made with the same settings from the same weights it is loaded, not made again; any other is
    refused, not replaced. How often it saves is no such setting. A second run of the same target waits for the first,
    with several processes it is refused.

    Args:
        model: in evaluation mode, on the device on which to train; not changed.
        source: of split train only. Its first pool + heldout images are for the noise, the model is trained on others.
        share: of each batch, from `nslib.machine.processes`.
        on_step: called at each noise step and each update, on every process. May raise to stop the run.
        on_noise: called once the noises (n, N, D) of a round are found, on every process and in the precision of the
            run, with its number, from 0, the model as it is then, and them; the plain values it returns, if any, are
            kept as the round's `influence`.
        on_round: called after each round with its number and the model as it would be delivered; what it returns is
            kept as the round's `measured`.
    Raises:
        ValueError: settings, data, target or number of processes do not fit; what lies at the target, or a saved
            state, is of other settings or cannot be read.
        FinetuneDiverged: a loss was not finite; names round and step, and holds the weights from before the round.
        OSError: the disk is full; the state saved before is kept. Or, before anything is computed, image files of a
            folder that the run will need cannot be read.
    Warns:
        UserWarning: cfg.noise.steps did not bring a noise inside eps. The round goes on with it.
    Source: arXiv:2403.10476, Eqs. (6)-(8), Algorithm 1.
    """
    check_staged(model)
    model.check_frozen_use()
    model.check_learning()
    check_source(source)
    target = Path(target).expanduser() if target else None
    check_target(target)
    objective, cfg = recipe_of(cfg)
    settings = {"model": model.name, "weights": model_digest(model), "data": timeless(source.identity("train"))}
    settings |= own_code(cfg.objective)
    asked, cfg = settings | {"finetune": identity_of(cfg)}, resolved(cfg, model.device, share)
    # What goes on is in the precision in which it began, and each process draws attacks and mixes of its own.
    going_on = settings | {"finetune": identity_of(cfg), "processes": share.count}
    with only_maker(target, share):
        share.mean(torch.zeros(1, device=model.device))  # no process looks before the first may
        saved = StateFile(target, going_on, writes=share.rank == 0)
        own = deepcopy(model)
        own.classes = own_classes(source)
        done = finished(target, own, asked, begun=saved.begun)
        share.check_agreed("a finished model" if done else "none", target)  # no process leaves before all have looked
        if done:
            saved.remove()  # a kill after the record was written has left it
            return Finetuned(*done, found=True)

        stream = Stream(source, model, cfg, share)
        if share.rank == 0 and not saved.begun:
            stream.check_files()
        trainer = Trainer(own, objective, cfg, share)
        place = saved.restore(trainer)
        written = target if saved.writes else None
        log = Log(written, place)
        share.check_agreed(_words(place, saved), target)  # no process saves before all have looked

        if not place.history:
            saved.save(trainer, place)
        with saved.beginning(), Board(written, place) as board:
            while place.round < cfg.rounds:
                current = _round(place, trainer, stream, saved, on_step, on_noise)
                if on_round:
                    saved.save(trainer, place)
                    current.measured = on_round(place.round, trainer.result()) or {}
                log.write(place.round, current)
                board.write(place.round, current, lr=trainer.rate)
                place.round, place.step = place.round + 1, 0
                saved.save(trainer, place)

        result = trainer.result()
        record = write_result(target, result, asked, cfg, place.history, share)
        saved.remove()
        return Finetuned(result, place.history, record)


def _words(place: Place, saved: StateFile) -> str:
    """Where a run goes on, for comparison between its processes."""
    begun = f"{len(place.history)} rounds with their noise and {place.step} updates of round {place.round}"
    return begun if saved.begun else "no saved state"


def _round(place: Place, trainer: Trainer, stream: Stream, saved: StateFile, on_step, on_noise) -> Round:
    """A round, or what is left of it.

    Raises:
        FinetuneDiverged: a loss was not finite.
    """
    began = trainer.result(averaged=False)
    if len(place.history) == place.round:
        with _diverging(place, began, saved):
            _find_noise(place, trainer, stream, saved.search(place.round), on_step)
        if on_noise and trainer.objective.noise:
            with computing_in(trainer.cfg.precision, trainer.model.device):
                place.history[-1].influence = on_noise(place.round, trainer.model, place.noise) or {}
        if trainer.objective.noise:
            saved.save(trainer, place)
    with _diverging(place, began, saved):
        _train(place, trainer, stream, lambda: saved.save(trainer, place), on_step)
    return place.history[-1]


@contextmanager
def _diverging(place: Place, began: StagedViT, saved: StateFile) -> Iterator[None]:
    """Inside the block a value that is not finite is told as where the run diverged."""
    try:
        yield
    except FloatingPointError as error:
        weights = saved.keep_good(began) if place.round else ""
        raise FinetuneDiverged(place, began, error, saved.last_good, weights) from error


def _find_noise(place: Place, trainer: Trainer, stream: Stream, search: Search, on_step) -> None:
    """Lines 2 to 7: a noise inside the eps set of the model as it is now, if the objective has one."""
    model, cfg, kind = trainer.model, trainer.cfg, trainer.objective.noise
    current = Round()
    if kind:

        def tell(step: int, trace: Trace) -> None:
            values = {"gap": trace.gap[-1], "norm": trace.norm[-1], "loss": trace.loss[-1]}
            on_step(Moment(place.round, "noise", step, values))

        images, labels = stream.for_noise
        started = time.monotonic() - search.begun.get("seconds", 0.0)  # reading images is not on the clock
        with metered(model) as meter, computing_in(cfg.precision, model.device):
            pool = pool_of(model, images, cfg)
            meter.passes = search.begun.get("passes", meter.passes)

            def save(state: dict[str, Any]) -> None:
                search.save({**state, "passes": meter.passes, "seconds": time.monotonic() - started})

            place.noise, current.noises = find_noises(
                kind, model, pool, cfg, round_=place.round, last=place.noise, share=trainer.share,
                search=replace(search, save=save), on_step=tell if on_step else None, labels=labels,
            )  # fmt: skip
        current.noise_units = meter.units * trainer.share.count
        current.noise_seconds = time.monotonic() - started
        for fact in current.noises:
            if not fact.converged:
                warnings.warn(
                    f"round {place.round}: {fact.steps} noise steps did not reach eps = {cfg.noise.eps} "
                    f"(held-out gap {fact.gap_heldout:.3g}); the round goes on with this noise",
                    stacklevel=3,
                )
    place.history.append(current)


def _train(place: Place, trainer: Trainer, stream: Stream, save: Callable[[], None], on_step) -> None:
    """Lines 8 to 12: S updates, or those of them that are left, saving the state at every cfg.checkpoint_every-th but
    the last.

    Raises:
        FloatingPointError: as `Trainer.update` and `Trainer.check`.
    """
    model, cfg, current = trainer.model, trainer.cfg, place.history[-1]
    weight = model.vit.patch_embed.proj.weight
    first, end = (place.round * cfg.steps + step for step in (place.step, cfg.steps))
    for update, (images, labels) in enumerate(stream.batches(first, end), start=first):
        started = time.monotonic()
        place.step += 1  # counts the one that is being made: an error tells it
        noise = None
        if place.noise is not None:
            draw = torch.randint(len(place.noise), (1,), generator=draws(cfg.seed, "choice", update))
            which = draw if cfg.groups == 1 else labels % cfg.groups
            noise = place.noise[which.to(weight.device)]
        rank = trainer.share.rank
        augmenting = number(cfg.seed, "augment", update, rank)
        with seeded(augmenting, weight.device), metered(model) as meter, computing_in(cfg.precision, weight.device):
            images, targets = trainer.augment(images.to(weight), labels.to(weight.device))
            loss = trainer.update(images, targets, noise, draws(cfg.seed, "attack", update, rank))
        current.losses.append(loss)
        current.update_units += meter.units * trainer.share.count
        current.update_seconds += time.monotonic() - started
        due, last = (update + 1) % cfg.checkpoint_every == 0, place.step == cfg.steps
        if due or last:
            trainer.check(images)
        if due and not last:
            save()
        if on_step:
            values = {"loss": loss, "lr": trainer.rate}
            on_step(Moment(place.round, "update", place.step, values))
