"""The search for the recipe: what is compared, and where the recipe stands in it."""

import re
from dataclasses import replace

import pandas as pd
import pytest
from conftest import make_vit
from test_trials import TINY

from nslib.data.source import open_source
from nslib.evaluate.bench import Bench
from nslib.search import place_of_settings, settings_table


def test_search_on_the_columns_that_can_be_shown():
    """Without a surrogate no damagenet. The images are those after the reported ones, and the rows lie in order."""
    model = make_vit()
    study = replace(TINY.finetuning, search_lr=(1e-3,), search_eps=(0.5, 1.0), search_rounds=1, search_images=6)
    table = settings_table(Bench(model, open_source(TINY.data, model), TINY.suite), replace(TINY, finetuning=study))
    assert sorted(table.eps) == [0.5, 1.0]
    assert table.difference.is_monotonic_decreasing
    assert (table.n == 6).all()
    assert (table.low <= table.difference).all()


@pytest.mark.parametrize(
    ("lr", "eps", "words"),
    [
        (1e-3, 0.5, "lr 0.001 and eps 0.5: place 2 of 3, 0.20 points over plain; the first is lr 0.001 and eps 0.1"),
        (1e-4, 0.5, r"place 3 of 3, .* 0.50 \[0.10, 0.90\]; by its best eps the learning rate is place 2 of 2"),
        (1e-4, 0.1, "lr 0.0001 and eps 0.1 are not among the 3 that were searched"),
    ],
)
def test_where_the_recipe_stands(lr, eps, words):
    rows = [(1e-3, 0.1, 0.5, 0.1, 0.9), (1e-3, 0.5, 0.2, -0.1, 0.5), (1e-4, 0.5, 0.1, -0.3, 0.5)]
    table = pd.DataFrame(rows, columns=["lr", "eps", "difference", "low", "high"])
    finetune = replace(TINY.finetune, lr=lr, lr_min=lr / 10, noise=replace(TINY.finetune.noise, eps=eps))
    said = place_of_settings(table, replace(TINY, finetune=finetune))
    assert re.search(words, said), said


def test_no_search():
    empty = pd.DataFrame(columns=["lr", "eps", "difference", "low", "high"])
    assert place_of_settings(empty, TINY) == "no search at this profile for this profile's lr 0.001 and eps 0.5"
