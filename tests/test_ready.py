"""What a run would stumble over after hours is told before it starts, and nothing is told of what would go well."""

import shutil

import pytest
from conftest import WNIDS

from nslib.profiles import PROFILES, REAL, resolve
from nslib.reproduce import reproduce
from nslib.study.forecast import forecast
from nslib.study.prepare import prepare
from nslib.study.ready import check_images, check_study

TINY = {"pool": 2, "heldout": 1, "images": 2, "patch.images": 1, "approximate.reach_images": 1, "watermark.images": 1}
TINY |= {"robustness.images": 1, "suite.costly_images": 1, "finetune.pool": 2, "finetune.heldout": 1}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_profiles_are_sound(profile):
    check_study(resolve(profile))
    if profile not in REAL:
        check_images(resolve(profile))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"finetuning.objectives": ["plain", "nullspace", "maddry"]},
         "finetuning.objectives must be among nullspace, .*madry, .*, got 'maddry'"),
        ({"finetuning.seeded": ["plian"]}, "finetuning.seeded must be among nullspace, .*, got 'plian'"),
        ({"finetuning.columns": ["clean", "fog"]}, "no column 'fog': there are clean, "),
        ({"suite.columns": ["clean", "fog"]}, "no column 'fog': there are clean, "),
        ({"finetuning.eps": []}, r"finetuning.eps must be one or more values, got \(\)"),
        ({"data.kind": "folder", "data.root": "here", "finetuning.search_few": [9]}, "search_few must be empty for"),
        ({"data.kind": "folder", "data.root": "here", "finetuning.search_bases": [1]}, "search_bases must be empty"),
        ({"finetune.noise.eps": None}, r"objective random needs the eps .*: set noise.eps"),
        ({"approximate.noise.eps": 0.1}, "approximate.noise.eps = 0.1 changes nothing: .* each of approximate.eps in"),
        ({"synthesis.noise.regularization": 0.5}, "synthesis.noise.regularization = 0.5 changes nothing"),
        ({"finetune.objective": "trades"}, "finetune.objective = trades changes nothing: .* finetuning.objectives in"),
        ({"pretrain.model": "vit_tiny_patch16_224"}, "pretrain.model = .* changes nothing: notebooks put each of mode"),
        ({"surrogate_pretrain.size": 32}, "surrogate_pretrain.size = 32 changes nothing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("begin", [forecast, prepare, lambda settings: check_study(settings)])
def test_settings_of_a_study_are_refused_before_anything_is_computed(changes, told, begin, monkeypatch):
    monkeypatch.setattr("nslib.models.build_model", lambda *a, **k: pytest.fail("opened a model"))
    with pytest.raises(ValueError, match=told):
        begin(resolve("smoke", overrides=changes))


def test_no_notebook_runs_with_settings_that_one_of_them_refuses(monkeypatch):
    monkeypatch.setattr("nslib.reproduce._execute", lambda *a: pytest.fail("ran a notebook"))
    with pytest.raises(ValueError, match="got 'maddry'"):
        reproduce(["01"], "smoke", overrides={"finetuning.objectives": ["plain", "nullspace", "maddry"]})


def test_too_few_shapes_are_refused(monkeypatch):
    monkeypatch.setattr("nslib.reproduce._at_once", lambda *a, **k: pytest.fail("ran a notebook"))
    few = {"data.images": 100}
    with pytest.raises(ValueError, match=r"train holds 100 images, .* some to train on = 193, pool \+ heldout = 384: "):
        reproduce([], "smoke", overrides=few)
    with pytest.raises(ValueError, match=r"train holds 100 images"):
        forecast(resolve("smoke", overrides=few))
    with pytest.raises(ValueError, match=r"train holds 100 images, asked for finetune.pool [^,]*: lower"):
        prepare(resolve("smoke", overrides=few))
    with pytest.raises(pytest.fail.Exception, match="ran a notebook"):  # which may need none of them
        reproduce(["01"], "smoke", overrides=few)


def test_one_image_is_left_to_train_on():
    """Pool and held-out images are none of these."""
    settings = {"pool": 1, "heldout": 1, "finetune.pool": 60, "finetune.heldout": 40}
    check_images(resolve("smoke", overrides={**settings, "data.images": 101}))
    with pytest.raises(ValueError, match=r"finetune\.pool [^,]* and some to train on = 101: lower these"):
        check_images(resolve("smoke", overrides={**settings, "data.images": 100}))


def test_images_of_a_folder_are_counted(image_tree):
    shutil.copytree(image_tree / "val", image_tree / "train")
    shutil.rmtree(image_tree / "train" / WNIDS[0])  # 8 images are left, and 12 of val
    tree = {"data.root": str(image_tree), "weights": "random", "models": ["vit_tiny_patch16_224"]}
    check_images(resolve("imagenet", overrides=tree | TINY | {"pool": 7, "images": 12}))
    with pytest.raises(ValueError, match=r"train holds 8 images, asked for pool \+ heldout = 9: "):
        check_images(resolve("imagenet", overrides=tree | TINY | {"pool": 8}))
    both = r"^train holds 8 images, asked for pool \+ heldout = 9; val holds 12 images, asked for images = 13: lower"
    with pytest.raises(ValueError, match=both):
        check_images(resolve("imagenet", overrides=tree | TINY | {"pool": 8, "images": 13}))
    many = {"images": 13, "suite.costly_images": 8, "suite.first": 5}
    told = r"val holds 12 images, asked for images = 13, suite.first \+ suite.costly_images = 13: lower .* hundred\)$"
    with pytest.raises(ValueError, match=told):
        check_images(resolve("imagenet", overrides=tree | TINY | many))
    check_images(resolve("imagenet", overrides=tree | TINY | many), notebooks=False)  # models are made without these
    searched = resolve("imagenet", overrides=tree | TINY | {"finetuning.search_lr": [0.1]})
    with pytest.raises(ValueError, match=r"val holds 12 images, .* suite.first \+ finetuning.search_first and "):
        check_images(searched)


def test_a_folder_that_is_not_named_is_told_before_a_model_is_fetched(monkeypatch):
    monkeypatch.delenv("NSLIB_IMAGENET", raising=False)
    monkeypatch.setattr("nslib.study.ready.open_model", lambda settings: pytest.fail("fetched"))
    with pytest.raises(ValueError, match=r"^no ImageNet folder: pass --imagenet FOLDER"):
        check_images(resolve("imagenet"))


def test_a_model_is_not_trained_for_counting_images(image_tree, monkeypatch):
    trained = []
    monkeypatch.setattr("nslib.study.experiment.pretrain", lambda cfg, *a, **k: trained.append(cfg.steps) or 1 / 0)
    settings = resolve("imagenet", overrides={"data.root": str(image_tree), "weights": "train"})
    with pytest.raises(ZeroDivisionError):
        check_images(settings)
    assert trained == [2]
