"""Which claims about finetuning can be judged with which settings and columns."""

from dataclasses import replace

import pytest

from nslib.config import TABLE2, FinetuneConfig, NoiseConfig
from nslib.finetune.objectives import ADVERSARIAL
from nslib.profiles import resolve
from nslib.study import testable

PAPER = FinetuneConfig()


def test_the_defaults_are_the_papers():
    assert testable.as_paper(PAPER)
    assert testable.noise_as_paper(replace(PAPER, rounds=5))
    assert not testable.as_paper(replace(PAPER, rounds=5))
    assert not testable.as_paper(replace(PAPER, trainable="pos_embed"))


@pytest.mark.parametrize(
    "change",
    [
        {"noise": NoiseConfig(limit=0.5)},
        {"noise": NoiseConfig(steps=300)},
        {"noise": NoiseConfig(eps=0.1)},
        {"noise": NoiseConfig(stop_on="batch")},
        {"noises": 4},
        {"groups": 2},
        {"block": 3},
        {"warm_start": 1.2},
    ],
)
def test_noise_of_another_kind_judges_no_claim(change):
    assert not testable.noise_as_paper(replace(PAPER, **change))


def test_the_share_of_the_noise_is_judged_where_it_learns_from_as_many_images_as_an_update_has():
    assert testable.cost_as_paper(PAPER)
    assert testable.cost_as_paper(resolve("full").finetune)
    assert not testable.cost_as_paper(resolve("laptop").finetune)
    assert not testable.cost_as_paper(replace(PAPER, noise=NoiseConfig(limit=0.5)))


def test_c11_needs_the_whole_table():
    assert testable.whole(resolve("full"))
    assert not testable.whole(resolve("laptop"))
    assert not testable.whole(resolve("full", overrides={"finetuning.columns": ["clean", "c"]}))


def test_c10_needs_attacked_and_shifted_columns():
    assert testable.both_kinds(TABLE2)
    assert testable.both_kinds(("clean", "fgsm", "v2"))
    assert not testable.both_kinds(("clean", "fgsm", "pgd"))
    assert not testable.both_kinds(("clean", "v2"))


def test_the_sides_of_c12():
    """Clean and shifted against the claim's own two attacks, also where the other attacks are measured."""
    assert testable.sides(resolve("full").finetuning.columns) == {
        "natural": ["clean", "a", "c", "v2", "r", "sketch", "stylized"],
        "adversarial": ["fgsm", "damagenet"],
    }
    assert testable.sides(("clean", "pgd", "autoattack")) == {"natural": ["clean"], "adversarial": []}
    assert set(ADVERSARIAL) == {"madry", "madry_authors", "trades"}


def test_c12_is_judged_by_whole_sides():
    assert testable.whole_side(["clean", "c"])
    assert testable.whole_side(["fgsm", "damagenet"])
    for part in ([], ["clean"], ["a", "c"], ["fgsm"]):
        assert not testable.whole_side(part)
