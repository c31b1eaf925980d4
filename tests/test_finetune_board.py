"""The rounds of a finetuning for TensorBoard: where it is there, and where it is not."""

import json
import sys
import types
from dataclasses import replace

import pytest
import torch

from nslib.config import FinetuneConfig, NoiseConfig
from nslib.finetune.result import history_table
from nslib.finetune.rounds import finetune_model

NOISE = NoiseConfig(limit=1.0, lr=0.05, steps=60, batch=16, eps=0.3)
CFG = FinetuneConfig(
    precision="float32", rounds=3, steps=3, batch=8, lr=1e-3, lr_min=1e-5, pool=16, heldout=8, noise=NOISE
)


@pytest.fixture
def writers(monkeypatch) -> list:
    """Every writer that is made, in place of TensorBoard's own."""
    made = []

    class Writer:
        def __init__(self, folder, *, purge_step):
            self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, {}, False
            made.append(self)

        def add_scalar(self, name, value, step):
            self.scalars[name, step] = value

        def flush(self):
            self.flushed = dict(self.scalars)

        def close(self):
            self.closed = True

    package = types.ModuleType("torch.utils.tensorboard")
    package.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    return made


def stopped_and_resumed(model, source, target):
    """The whole history of a run that was stopped in round 1 and went on."""

    def stop(moment):
        if (moment.round, moment.phase, moment.step) == (1, "update", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_model(model, source, CFG, target=target, on_step=stop)
    return finetune_model(model, source, CFG, target=target, on_round=lambda k, model: {"clean": 50.0 + k})


def test_each_round_is_told_once(model, source, writers, tmp_path):
    made = stopped_and_resumed(model, source, tmp_path / "w.safetensors")
    assert [w.folder for w in writers] == [tmp_path / "w.tensorboard"] * 2
    assert [w.purge_step for w in writers] == [0, 1]
    assert [sorted({step for _, step in w.scalars}) for w in writers] == [[0], [1, 2]]
    assert all(w.closed for w in writers)
    table = history_table(made.history)
    scalars = writers[1].flushed
    for name in ("norm", "gap_heldout", "steps", "loss", "clean"):
        assert [scalars[name, k] for k in (1, 2)] == table[name].tolist()[1:]
    assert scalars["lr", 2] == pytest.approx(CFG.lr_min)
    assert scalars["lr", 1] > 10 * CFG.lr_min


def test_words_that_were_measured_are_left_out(model, source, writers, tmp_path):
    cfg = replace(CFG, objective="plain", rounds=1)
    finetune_model(model, source, cfg, target=tmp_path / "w.safetensors", on_round=lambda k, m: {"said": "yes", "n": 3})
    names = {name for name, _ in writers[0].scalars}
    assert names >= {"n", "loss", "lr"}
    assert not names & {"said", "norm", "round"}


def test_nothing_is_told_without_a_target(model, source, writers):
    finetune_model(model, source, replace(CFG, rounds=1))
    assert writers == []


def test_without_tensorboard_nothing_is_written_or_said(model, source, monkeypatch, tmp_path, capsys):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    finetune_model(model, source, replace(CFG, rounds=1), target=tmp_path / "w.safetensors")  # a warning is an error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.json", "w.jsonl", "w.safetensors"]
    assert capsys.readouterr() == ("", "")


def test_tensorboard_reads_each_round_once(model, source, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    target = tmp_path / "w.safetensors"
    made = stopped_and_resumed(model, source, target)
    found = events.EventAccumulator(str(tmp_path / "w.tensorboard"))
    found.Reload()
    told = {name: [(x.step, x.value) for x in found.Scalars(name)] for name in found.Tags()["scalars"]}
    lines = [json.loads(line) for line in target.with_suffix(".jsonl").read_text().splitlines()]
    assert [step for step, _ in told["norm"]] == [line["round"] for line in lines] == [0, 1, 2]
    for name in ("norm", "loss"):
        expected = torch.tensor(history_table(made.history)[name].tolist())
        assert torch.allclose(torch.tensor([value for _, value in told[name]]), expected)
