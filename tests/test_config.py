"""Profiles and their overrides: what is unknown or of another type is refused by name."""

import dataclasses
import math
import re
from operator import attrgetter

import pytest

from nslib.config import TABLE2, WEIGHTS, DataConfig, NoiseConfig, PretrainConfig
from nslib.profiles import PROFILES, REAL, resolve
from nslib.settings import Settings

FOLDERS = ("NSLIB_IMAGENET", "NSLIB_WEIGHTS")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in FOLDERS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_resolves(profile):
    settings = resolve(profile)
    assert settings.profile == settings.run_name == profile
    assert resolve(profile) == settings
    for name, value in PROFILES[profile].items():
        assert attrgetter(name)(settings) == value


def test_the_defaults_are_the_laptop():
    assert resolve("laptop") == Settings()


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve("smoke").seed = 1


def test_overrides_by_dotted_name_leave_the_rest():
    base = resolve("smoke")
    changed = resolve("smoke", "mine", {"images": 7, "synthesis.noise.steps": 3, "approximate.noise.eps": 0.5})
    assert (changed.images, changed.synthesis.noise.steps, changed.approximate.noise.eps) == (7, 3, 0.5)
    assert changed.run_name == "mine"
    synthesis = dataclasses.replace(base.synthesis, noise=dataclasses.replace(base.synthesis.noise, steps=3))
    assert changed.synthesis == synthesis
    assert changed.data == base.data


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("synthesis.noise.lr", 1, 1.0),  # an integer where a number is meant
        ("approximate.eps", [0.03, 0.1], (0.03, 0.1)),  # JSON and papermill know no tuples
        ("approximate.noise.eps", None, None),  # no early stop
        ("synthesis.noise.eps", 0.1, 0.1),  # the default is None
        ("models", ["vit_tiny_patch16_224"], ("vit_tiny_patch16_224",)),
        ("models", "vit_tiny_patch16_224", ("vit_tiny_patch16_224",)),  # --set models=TAG, as an error suggests
        ("approximate.eps", 0.1, (0.1,)),
    ],
)
def test_values_take_the_type_of_the_setting(name, given, kept):
    found = attrgetter(name)(resolve("laptop", overrides={name: given}))
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize("profile", ["", "Laptop", "fast"])
def test_unknown_profile(profile):
    with pytest.raises(ValueError, match=f"profile must be one of .*, gpu, imagenet, imagenet_small, got '{profile}'"):
        resolve(profile)


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "/tmp", " "])
def test_run_name_that_is_a_path(name):
    with pytest.raises(ValueError, match=f"run_name must name one folder, .*, got '{re.escape(name)}'"):
        resolve("smoke", name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("imags", "no setting 'imags': Settings has profile, .*images"),
        ("synthesis.noise.step", "no setting 'synthesis.noise.step': NoiseConfig has limit, .*steps"),
        (
            "synthesis",
            "synthesis is a group of settings: name those in it, such as synthesis.lambdas, synthesis.starts",
        ),
        ("synthesis.noise", "synthesis.noise is a group of settings: .* such as synthesis.noise.limit"),
        ("images.count", "no setting 'images.count'"),
        ("noise.steps", "no setting 'noise.steps': Settings has .*near it: .*finetune.noise.steps"),
        ("imagse", "near it: images"),
        ("finetune.eps", "near it: .*finetune.noise.eps"),
    ],
)
def test_unknown_setting(name, told):
    with pytest.raises(ValueError, match=told):
        resolve("laptop", overrides={name: 1})


@pytest.mark.parametrize("overrides", ['{"images": 5}', ["images"], {1: 2}])
def test_overrides_that_are_none(overrides):
    with pytest.raises(ValueError, match=r"overrides must be settings by dotted name, .* with papermill -y .*, got"):
        resolve("laptop", overrides=overrides)


def test_a_run_name_that_is_no_text():
    with pytest.raises(ValueError, match=r"run_name must name one folder, .*, got 3"):
        resolve("laptop", 3)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("models", [], "models must be at least one"),
        ("images", "many", "setting images must be a int such as 2000, got 'many'"),
        ("images", 2.5, "setting images must be a int"),
        ("images", True, "setting images must be a int"),
        ("images", None, "setting images must be a int"),
        ("weights", 3, "setting weights must be a str such as 'shipped', got 3"),
        ("approximate.eps", ["small"], "setting approximate.eps must be"),
        ("approximate.noise.eps", "small", "setting approximate.noise.eps must be a float"),
        ("synthesis.noise.eps", "small", "eps must be"),  # its default is None
    ],
)
def test_value_of_another_type(name, value, told):
    with pytest.raises(ValueError, match=told):
        resolve("laptop", overrides={name: value})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(limit=0), "limit must be > 0 and finite, got 0"),
        (dict(lr=-1), "lr must be > 0 and finite, got -1"),
        (dict(steps=0), "steps must be >= 1, got 0"),
        (dict(batch=0), "batch must be >= 1, got 0"),
        (dict(eps=0), r"eps must be a squared l2 gap in \(0, 2\], or None, got 0"),
        (dict(eps=2.01), r"eps must be a squared l2 gap in \(0, 2\], or None, got 2.01"),
        (dict(eps=float("nan")), "eps must be"),
        (dict(regularization=-0.1), "regularization must be >= 0 and finite, got -0.1"),
        (dict(weight_decay=-1), "weight_decay must be >= 0 and finite, got -1"),
        (dict(lr=math.inf), "lr must be > 0 and finite, got inf"),
        (dict(weight_decay=math.nan), "weight_decay must be >= 0 and finite, got nan"),
        (dict(steps=2**31), "steps must be below 2\\^31, got 2147483648"),
        (dict(stop_on="train"), "stop_on must be heldout or batch, got 'train'"),
    ],
)
def test_noise_settings_out_of_range(change, told):
    with pytest.raises(ValueError, match=told):
        NoiseConfig(**change)


def test_noise_settings_at_the_ends_of_their_ranges():
    NoiseConfig(eps=2, steps=1, batch=1, regularization=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(clip=-1), "clip must be > 0, got -1"),
        (dict(clip=0), "clip must be > 0, got 0"),
        (dict(weight_decay=-1), "weight_decay must be >= 0 and finite, got -1"),
        (dict(lr=math.inf), "lr must be > 0 and finite, got inf"),
        (dict(seed=2**64), r"seed must be below 2\^31, got 18446744073709551616"),
    ],
)
def test_rates_of_training_out_of_range(change, told):
    """A negative bound on the gradient's norm would turn it round, without a word."""
    with pytest.raises(ValueError, match=told):
        PretrainConfig(**change)


def test_seeds_of_data_out_of_range():
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        DataConfig(seed=-1)


@pytest.mark.parametrize("name", ["size", "steps", "batch", "checkpoint_every", "report_images"])
def test_training_settings_out_of_range(name):
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        PretrainConfig(**{name: 0})


@pytest.mark.parametrize("profile", ["laptop", "full", "imagenet"])
@pytest.mark.parametrize("turned", [1, -1])
def test_values_that_are_valid_beside_each_other_alone(profile, turned):
    """In whatever order they are given: one after the other would be refused."""
    for own in ({"finetune.lr": 1e-6, "finetune.lr_min": 1e-7}, {"finetune.lr": 2.0, "finetune.lr_min": 1.5}):
        cfg = resolve(profile, overrides=dict([*own.items()][::turned])).finetune
        assert {"finetune.lr": cfg.lr, "finetune.lr_min": cfg.lr_min} == own
    few = {"surrogate_pretrain.steps": 4, "surrogate_pretrain.fgsm_steps": 1}
    assert resolve("smoke", overrides=few).surrogate_pretrain.steps == 4
    with pytest.raises(ValueError, match=r"lr_min must be in \[0, lr = 1e-07\]"):
        resolve(profile, overrides={"finetune.lr": 1e-7})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("approximate.noise.eps", 3.0, r"must be a squared l2 gap in \(0, 2\], or None, got 3.0"),
        (
            "approximate.eps",
            [0.03, 3],
            r"must be one or more values, each a squared l2 gap in \(0, 2\], got \(0.03, 3.0",
        ),
        ("finetuning.eps", [3], r"must be values, each a squared l2 gap in \(0, 2\], got \(3.0,\)"),
        ("patch.images", 0, "must be >= 1, got 0"),
        ("patch.peak", 0.0, "must be > 0 and finite, got 0.0"),
        ("patch.amplitudes", [0.1, -1.0], "must be one or more values, each > 0 and finite, got"),
        ("synthesis.lambdas", [], r"must be one or more values, each >= 0 and finite, got \(\)"),
        ("synthesis.lambdas", -1, "must be one or more values, each >= 0 and finite, got"),
        ("synthesis.starts", 0, "must be >= 1, got 0"),
        ("closure.step", -0.1, "must be > 0 and finite, got -0.1"),
        ("closure.spans", [0], r"must be one or more values, each >= 1, got \(0,\)"),
        ("watermark.strengths", [2], r"must be one or more values, each in \[0, 1\], got \(2.0,\)"),
        ("watermark.images", 0, "must be >= 1, got 0"),
        ("fingerprint.steps", 0, "must be >= 1, got 0"),
        ("robustness.eps", [8], r"must be one or more values, each in \[0, 1\], 8-bit levels .*, got \(8.0,\)"),
        ("robustness.images", 0, "must be >= 1, got 0"),
        ("finetuning.fixed_steps", -1, "must be >= 0, got -1"),
        ("finetune.rounds", 0, "must be >= 1, got 0"),
    ],
)
def test_range_is_checked_also_for_overrides_and_told_with_the_whole_name(name, value, told):
    with pytest.raises(ValueError, match=f"^{name} {told}"):
        resolve("laptop", overrides={name: value})


# Real input


@pytest.fixture
def weights(tmp_path):
    for name in ("vit_b.x", "vit_a.y", "deit_tiny.z"):
        (tmp_path / f"{name}.safetensors").touch()
    return tmp_path


@pytest.mark.parametrize("profile", REAL)
def test_folders_come_from_the_environment_at_imagenet_only(weights, monkeypatch, profile):
    for name, folder in zip(FOLDERS, (weights / "images", weights), strict=True):
        monkeypatch.setenv(name, str(folder))
    settings = resolve(profile)
    assert settings.data.root == str(weights / "images")
    assert settings.weights == str(weights)
    assert settings.models == ("vit_a.y", "vit_b.x")  # the plain ViTs that are there, by name
    assert resolve("laptop") == Settings()


def test_models_of_a_folder_keep_the_order_of_the_profile(tmp_path, monkeypatch):
    """Several notebooks look at the first alone, and the larger model's patches have hardly a nullspace."""
    small, base = resolve("imagenet").models
    for name in (base, "vit_a.y", small):
        (tmp_path / f"{name}.safetensors").touch()
    assert resolve("imagenet", overrides={"weights": str(tmp_path)}).models == (small, base, "vit_a.y")
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve("imagenet", overrides={"weights": f"~/{tmp_path.name}"}).models == (small, base, "vit_a.y")


def test_rows_of_one_seed_are_not_compared_on_fewer_images_than_the_table_has():
    assert resolve("full").finetuning.wide_images == 12000
    with pytest.raises(ValueError, match="wide_images must be 0, or >= images = 400, got 300"):
        resolve("laptop", overrides={"finetuning.wide_images": 300})


def test_what_is_passed_goes_before_the_environment(weights, monkeypatch):
    monkeypatch.setenv("NSLIB_IMAGENET", "elsewhere")
    monkeypatch.setenv("NSLIB_WEIGHTS", "random")
    passed = {"data.root": "here", "weights": str(weights), "models": ("vit_b.x",)}
    settings = resolve("imagenet", overrides=passed)
    assert (settings.data.root, settings.weights, settings.models) == ("here", str(weights), ("vit_b.x",))


def test_without_folders_the_models_are_the_papers():
    settings = resolve("imagenet")
    assert settings.weights == "pretrained"
    assert settings.data.root == ""
    assert [m.split(".")[0] for m in settings.models] == ["vit_small_patch16_224", "vit_base_patch16_224"]


def test_imagenet_is_the_papers_protocol():
    """Algorithm 1 as in the authors' code; `gpu` and `full` share its rounds, steps and noise."""
    for profile in ("imagenet", "gpu", "full"):
        cfg = resolve(profile).finetune
        assert (cfg.rounds, cfg.steps, cfg.batch) == (20, 40, 128)
        assert (cfg.noise.limit, cfg.noise.lr, cfg.noise.steps, cfg.noise.eps) == (3, 0.1, 3000, 0.03)
    cfg = resolve("imagenet").finetune
    assert (cfg.lr, cfg.lr_min, cfg.noise.weight_decay, cfg.weight_decay) == (1e-5, 1e-6, 0.01, 0.05)
    assert resolve("imagenet").finetuning.columns == TABLE2


def test_imagenet_small_asks_the_same_of_less():
    large, small = (PROFILES[profile] for profile in REAL)
    assert all(small[name] == large[name] for name in ("data.kind", "models", "weights", "surrogate"))
    for name in ("images", "pool", "finetune.rounds", "finetune.noise.steps", "finetuning.images", "suite.images"):
        assert small[name] < attrgetter(name)(resolve("imagenet"))


def test_folder_of_weights_without_a_vit(tmp_path):
    with pytest.raises(ValueError, match=r"no vit_\*\.safetensors in .*: name the models with --set models=TAG"):
        resolve("imagenet", overrides={"weights": str(tmp_path)})


@pytest.mark.parametrize("word", [*WEIGHTS, ""])
def test_a_folder_of_its_name_takes_no_words_meaning(tmp_path, monkeypatch, word):
    """Nor is the working directory a folder of weights where none is named."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / word
    home.mkdir(exist_ok=True)
    for name in ("vit_b.x", "deit_tiny_patch16_224.fb_in1k"):
        (home / f"{name}.safetensors").touch()
    settings = resolve("imagenet", overrides={"weights": word} if word else {})
    assert settings == dataclasses.replace(resolve("imagenet"), weights=word or "pretrained")
    assert settings.models == PROFILES["imagenet"]["models"]
    assert settings.surrogate_weights == "pretrained"
