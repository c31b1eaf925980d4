"""The search for the recipe: what is compared, and where the recipe stands in it."""

import re
from dataclasses import replace

import pandas as pd
import pytest
from conftest import make_vit
from test_trials import TINY

from nslib.data.source import open_source
from nslib.evaluate.bench import Bench
from nslib.models import load_model
from nslib.study.experiment import open_stranger
from nslib.study.search import Recipe, place_of_settings, recipes, settings_table


def test_search_on_the_columns_that_can_be_shown():
    """Without a surrogate no damagenet. The rows lie in order."""
    model = make_vit()
    study = replace(TINY.finetuning, search_lr=(1e-3,), search_eps=(0.5, 1.0), search_rounds=1, search_images=6)
    study = replace(study, images=3, wide_images=5)  # of rows, and fewer than are searched on
    table = settings_table(Bench(model, open_source(TINY.data, model), TINY.suite), replace(TINY, finetuning=study))
    assert sorted(table.eps) == [0.5, 1.0]
    assert set(table.base) == {0}
    assert set(table.limit) == {TINY.finetune.noise.limit}
    assert table.difference.is_monotonic_decreasing
    assert (table.n == 6).all()
    assert (table.low <= table.difference).all()


def test_a_recipe_without_eps_keeps_its_place():
    """A table has NaN where there is none."""
    cfg = TINY.finetune
    settings = replace(TINY, finetune=replace(cfg, noise=replace(cfg.noise, eps=None)))
    rows = [Recipe(0, 0, 2, cfg.lr, eps, cfg.noise.limit)._asdict() for eps in (0.5, None)]
    rows[1]["rounds"] = cfg.rounds
    table = pd.DataFrame(rows).assign(difference=[1.0, 0.5], low=0.0, high=2.0)
    assert table.eps.isna().tolist() == [False, True]
    assert "place 2 of 2, 0.50 points over plain" in place_of_settings(table, settings)


def test_limits_and_base_models_beside_the_recipe():
    """Each changes one thing of it; another base model, other images or rounds have their own `plain`."""
    study = replace(TINY.finetuning, search_limits=(0.2, 4.0), search_bases=(1,), search_rounds=1, search_images=6)
    study = replace(study, search_longer=(2,), search_few=(5,))
    settings = replace(TINY, models=("shapes_vit",), finetuning=study)
    own = TINY.finetune
    eps, limit = own.noise.eps, own.noise.limit
    assert recipes(settings) == [
        (0, 0, 1, own.lr, eps, 0.2),
        (0, 0, 1, own.lr, eps, 4.0),
        (1, 0, 1, own.lr, eps, limit),
        (0, 5, 1, own.lr, eps, limit),
        (0, 0, 2, own.lr, eps, limit),
    ]
    model = load_model()
    table = settings_table(Bench(model, open_source(TINY.data, model), TINY.suite), settings).set_index(
        ["base", "images", "rounds", "limit"]
    )
    plain, norm = table.plain, table.norm
    assert plain[0, 0, 1, 0.2] == plain[0, 0, 1, 4.0]
    assert len({plain[0, 0, 1, 0.2], plain[1, 0, 1, limit], plain[0, 5, 1, limit], plain[0, 0, 2, limit]}) == 4
    assert norm[0, 0, 1, 0.2] < norm[0, 0, 1, 4.0]


def test_a_stranger_goes_by_its_seed():
    """Results of runs are kept under the name of the model."""
    assert open_stranger(replace(TINY, models=("shapes_vit",)), 1).name == "shapes_vit_seed1"


@pytest.mark.parametrize(
    ("lr", "eps", "limit", "words"),
    [
        (1e-3, 0.5, 1.0, "2 rounds, lr 0.001, eps 0.5 and limit 1: place 3 of 4, 0.20 points over plain; the first is "
                         r"2 rounds, lr 0.001, eps 0.1 and limit 1 from base model 2 on 9 images, 0.60 \[0.20, 1.00\]"),
        (1e-3, 0.1, 1.0, "2 rounds, lr 0.001, eps 0.1 and limit 1: place 2 of 4, 0.50 points"),
        (1e-3, 0.1, 3.0, "2 rounds, lr 0.001, eps 0.1 and limit 3 are not among the 4 that were searched"),
        (1e-4, 0.1, 1.0, "2 rounds, lr 0.0001, eps 0.1 and limit 1 are not among the 4 that were searched"),
    ],
)  # fmt: skip
def test_where_the_recipe_stands(lr, eps, limit, words):
    rows = [
        (2, 9, 2, 1e-3, 0.1, 1.0, 0.6, 0.2, 1.0),
        (0, 0, 2, 1e-3, 0.1, 1.0, 0.5, 0.1, 0.9),
        (0, 0, 2, 1e-3, 0.5, 1.0, 0.2, -0.1, 0.5),
        (0, 0, 2, 1e-4, 0.5, 1.0, 0.1, -0.3, 0.5),
    ]
    table = pd.DataFrame(rows, columns=["base", "images", "rounds", "lr", "eps", "limit", "difference", "low", "high"])
    noise = replace(TINY.finetune.noise, eps=eps, limit=limit)
    finetune = replace(TINY.finetune, lr=lr, lr_min=lr / 10, noise=noise)
    said = place_of_settings(table, replace(TINY, finetune=finetune))
    assert re.fullmatch(f"this profile's {words}.*", said), said


def test_the_search_looks_beyond_all_that_is_reported(monkeypatch):
    """Counted from the first image that is shown, or settings would be chosen on reported ones."""
    judged, model = [], make_vit()

    def runs(bench, settings, *args, **kwargs):
        judged.append(settings.suite.first)
        raise ZeroDivisionError

    monkeypatch.setattr("nslib.study.search._run", runs)
    study = replace(TINY.finetuning, search_lr=(1e-3,), search_eps=(0.5,))
    settings = replace(TINY, suite=replace(TINY.suite, first=20), finetuning=study)
    with pytest.raises(ZeroDivisionError):
        settings_table(Bench(model, open_source(TINY.data, model), TINY.suite), settings)
    assert judged == [20 + TINY.finetuning.search_first]


def test_learning_rates_are_searched_at_the_recipes_own_eps():
    study = replace(TINY.finetuning, search_lr=(1e-3, 1e-2))
    found = recipes(replace(TINY, finetuning=study))
    assert [(r.lr, r.eps) for r in found] == [(1e-3, TINY.finetune.noise.eps), (1e-2, TINY.finetune.noise.eps)]
    with pytest.raises(ValueError, match=r"search_eps must be given with search_lr, .*, got \(0\.5,\)"):
        replace(TINY.finetuning, search_eps=(0.5,))


def test_no_search():
    said = place_of_settings(pd.DataFrame(), TINY)
    assert said == "no search at this profile for this profile's 2 rounds, lr 0.001, eps 0.5 and limit 3"
