"""What a profile will take, told before it starts."""

from dataclasses import replace

import pandas as pd
import pytest
from test_finetuning_notebooks import FEW

from nslib.pretrain import pretrain
from nslib.profiles import resolve
from nslib.study import experiment
from nslib.study import forecast as module
from nslib.study.forecast import finetunings, forecast


def test_seeds_are_counted_of_the_objectives_that_get_them():
    settings = resolve("full", overrides={"finetuning.eps": [0.03], "finetuning.fixed_steps": 0})
    counts = finetunings(settings)
    assert counts["nullspace_by_batch"] == 3
    assert (counts["nullspace"], counts["plain"], counts["random"], counts["madry"]) == (3 + 5, 3 + 3, 3, 1)


def test_eps_sets_are_of_what_notebook_05_looks_at():
    settings = resolve("full")
    (noises,) = (count for name, _, count in module._searches(settings) if name == "eps sets of 05")
    assert noises == (1 + 4 * 3) * 12  # base; nullspace, also stopped by its batch, plain, random


def test_forecast_by_hand():
    overrides = {**FEW, "synthesis.noise.steps": 7, "approximate.noise.steps": 11, "closure.noise.steps": 5}
    settings = resolve("smoke", overrides={**overrides, "suite.images": 8, "finetuning.wide_images": 32})
    table = forecast(settings).set_index("work")
    assert table.noise_steps["noises of 02"] == 2 * 7
    assert table.noise_steps["noises of 03"] == 2 * 2 * 2 * 11
    assert table.noise_steps["noises of 04"] == 4 * 5
    fresh, steps = settings.finetuning.fresh, settings.finetune.noise.steps
    assert table.noise_steps["eps sets of 05"] == 4 * fresh * steps  # base, nullspace, plain, random
    assert table.noise_steps["eps sets of 11"] == 4 * fresh * steps  # of those with noise
    assert table.images["finetune: plain"] == 4 * 8
    assert table.noise_steps["finetune: random"] == 0
    assert table.runs["evaluate: rows of 06 to 08, 11"] == finetunings(settings).total() + 1
    row = table.loc["evaluate: rows of one seed, on more images"]
    assert (row.runs, row.images) == (3, 3 * 2 * 32)  # nullspace, plain, random; clean, fgsm
    assert ((table.noise_steps > 0) == (table.noise_hours > 0)).all()
    assert (table.hours[~table.index.str.contains("noise|sets")] > 0).all()
    assert (table.memory.dropna() > 0).all()


def test_models_to_be_trained_from_scratch_are_counted_and_not_trained(monkeypatch, tmp_path):
    monkeypatch.setenv("NSLIB_STORE", str(tmp_path))
    trained = []
    monkeypatch.setattr(experiment, "pretrain", lambda cfg, *a, **k: (trained.append(cfg), pretrain(cfg, *a, **k))[1])
    overrides = {**FEW, "suite.images": 8, "surrogate": "surrogate_cnn", "surrogate_weights": "train"}
    settings = resolve("smoke", overrides={**overrides, "weights": "train", "pretrain.steps": 5000})
    table = forecast(settings).set_index("work")
    row, strangers = table.loc["training from scratch"], table.loc["strangers of 13, from scratch"]
    assert [(cfg.model, cfg.steps) for cfg in trained] == [("shapes_vit", 2), ("surrogate_cnn", 2)]
    assert (row.runs, row.images) == (1, 5000 * settings.pretrain.batch)
    study = settings.fingerprint
    assert (strangers.runs, strangers.images) == (study.trained, study.trained * study.steps * study.batch)
    assert strangers.hours / strangers.images == pytest.approx(row.hours / row.images)
    assert row.hours > 0


def test_a_further_model_has_the_rows_that_06_gives_it(monkeypatch):
    asked = []

    def noted(bench, settings, models, *, whole):
        asked.append((models, whole))
        return pd.DataFrame()

    monkeypatch.setattr(module, "_of_model", noted)
    settings = replace(resolve("smoke"), models=("shapes_vit", "shapes_vit"))
    forecast(settings)
    assert asked == [(finetunings(settings), True), ({"plain": 1, "nullspace": 1}, False)]
