"""From settings to objects: the path that the gpu profile takes, with a handful of steps on a CPU."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import make_vit

from nslib.config import DataConfig
from nslib.data.source import open_source
from nslib.profiles import resolve
from nslib.study import jobs
from nslib.study.experiment import open_bench, open_experiment, open_model

TINY = {
    "device": "cpu",
    "models": ("vit_tiny_patch16_224",),
    "pretrain.size": 32,
    "pretrain.steps": 3,
    "pretrain.batch": 4,
    "pretrain.images": 8,
    "pretrain.report_images": 4,
    "pool": 6,
    "heldout": 2,
    "images": 4,
}


def test_gpu_profile_trains_once_and_opens():
    settings = resolve("gpu", overrides=TINY)
    lab = open_experiment(settings)
    assert lab.model.image_shape == (3, 32, 32)
    assert lab.model.num_classes == 10
    assert len(lab.pool.train) == 6
    assert len(lab.pool.heldout) == 2
    assert len(lab.clean) == 4
    again = open_model(settings)
    assert torch.equal(lab.model.vit.head.weight, again.vit.head.weight)


FINETUNED = TINY | {
    "surrogate_pretrain.size": 32,
    "surrogate_pretrain.images": 8,
    "surrogate_pretrain.fgsm_steps": 1,
    "surrogate_pretrain.steps": 3,
    "surrogate_pretrain.batch": 4,
    "surrogate_pretrain.report_images": 4,
    "finetune.rounds": 2,
    "finetune.steps": 3,
    "finetune.batch": 4,
    "finetune.lr": 1e-3,
    "finetune.pool": 8,
    "finetune.heldout": 4,
    "finetune.noise.eps": None,
    "finetune.noise.steps": 4,
    "finetune.noise.batch": 4,
    "finetune.checkpoint_every": 1,
    "finetune.precision": "bfloat16",  # as `auto` takes on CUDA
    "finetuning.columns": ("clean", "fgsm", "damagenet"),
    "finetuning.keep": False,
    "finetuning.images": 6,
    "finetuning.trace_images": 4,
    "suite.batch": 4,
}


class Stopped(Exception):
    pass


def test_gpu_profile_finetunes_and_goes_on_after_a_stop(monkeypatch, tmp_path):
    settings = resolve("gpu", overrides=FINETUNED)
    bench = open_bench(settings)

    def run(store, last=None):
        """The run's moments and its result; stopped after the one named `last`."""
        moments = []

        @contextmanager
        def bar(*_):
            def on_step(moment):
                moments.append((moment.round, moment.phase, moment.step))
                if moments[-1] == last:
                    raise Stopped

            yield on_step

        monkeypatch.setenv("NSLIB_STORE", str(tmp_path / store))
        monkeypatch.setattr(jobs, "finetune_bar", bar)
        try:
            return moments, jobs.run(bench, settings, "nullspace")
        except Stopped:
            return moments, None

    every, whole = run("whole")
    assert run("parts", last=(1, "noise", 2))[1] is None
    assert run("parts", last=(1, "update", 2))[0][0] == (1, "noise", 2)  # the search goes on where it was
    rest, resumed = run("parts")
    assert rest == [m for m in every if m > (1, "update", 2)]
    assert [(r.losses, r.noises, r.measured) for r in resumed.history] == [
        (r.losses, r.noises, r.measured) for r in whole.history
    ]
    assert set(whole.evaluation.hits) == {"clean", "fgsm", "damagenet"}
    for column, variants in whole.evaluation.hits.items():
        assert {v: h.tolist() for v, h in variants.items()} == {
            v: h.tolist() for v, h in resumed.evaluation.hits[column].items()
        }
    exact = replace(settings, finetune=replace(settings.finetune, precision="float32"))
    monkeypatch.setattr(jobs, "finetune_bar", lambda *_: nullcontext(None))
    losses = jobs.run(bench, exact, "nullspace").history[0].losses
    assert losses != whole.history[0].losses  # another precision, kept apart in the same store
    assert losses == pytest.approx(whole.history[0].losses, rel=0.1)


@pytest.mark.parametrize("name", ["model_best.pth.tar", "MODEL.PTH"])
def test_training_checkpoint_opens_as_a_model(tmp_path, name):
    model = make_vit("shapes_vit", img_size=48, embed_dim=128, depth=6, num_heads=4)
    layers = {"0.mean": torch.full((3,), 0.4), "0.std": torch.full((3,), 0.3)}
    path = tmp_path / name
    torch.save({"state_dict": layers | {f"1.{k}": v for k, v in model.vit.state_dict().items()}}, path)
    opened = open_model(resolve("smoke", overrides={"weights": str(path), "device": "cpu"}))
    assert torch.equal(opened.vit.head.weight, model.vit.head.weight)
    assert opened.mean.flatten().tolist() == pytest.approx([0.4] * 3)


def test_pool_heldout_and_reported_images_are_disjoint():
    lab = open_experiment(resolve("smoke", overrides={"device": "cpu", "pool": 40, "heldout": 20, "images": 60}))
    parts = (lab.pool.train, lab.pool.heldout, lab.clean)
    tokens = torch.cat([part.tokens.flatten(1) for part in parts])
    assert len(tokens.unique(dim=0)) == len(tokens) == 120


def test_folder_without_root_names_the_option(monkeypatch):
    monkeypatch.delenv("NSLIB_IMAGENET", raising=False)
    settings = resolve(
        "imagenet", overrides={"weights": "random", "models": ("vit_tiny_patch16_224",), "device": "cpu"}
    )
    with pytest.raises(ValueError, match="--imagenet FOLDER or set NSLIB_IMAGENET"):
        open_experiment(settings)


def test_folder_with_too_few_images_says_how_many(image_tree):
    source = open_source(DataConfig(kind="folder", root=str(image_tree)), make_vit(num_classes=1000))
    with pytest.raises(ValueError, match="holds 12 images, asked for 8 to 108: ask for fewer"):
        source.take("val", 100, start=8)
