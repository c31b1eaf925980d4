"""The nullspace as a fingerprint: whose it is, whose not, and what moves it."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from conftest import make_vit
from safetensors.torch import save_file
from test_patch_nullspace import tiny

from nslib.analysis import fingerprint
from nslib.data.shapes import render
from nslib.models import build_model, weights_record
from nslib.nullspace.patch import PatchNullspace
from nslib.pretrain import accuracy
from nslib.profiles import resolve
from nslib.runtime import generator, store_path
from nslib.studies import FingerprintStudy
from nslib.study.experiment import open_model, open_stranger
from nslib.vit.staged import StagedViT

UNEQUAL = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.7))


def stranger(seed: int, **kwargs) -> StagedViT:
    """48 pixels -> 16 numbers, of another seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model("shapes_vit", img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, **kwargs).eval()


@pytest.fixture
def model():
    return tiny(**UNEQUAL)


@pytest.fixture
def key(model):
    return fingerprint.make_key(model)


def test_own_model_and_strangers(model, key):
    assert key.shape == (48, 32)
    assert fingerprint.leak(model, key) < 1e-12
    assert fingerprint.principal_angles(model, key).max() < 1e-4
    found = [fingerprint.leak(stranger(seed), key) for seed in range(1, 21)]
    assert np.mean(found) == pytest.approx(1, abs=0.1)
    assert min(found) > 0.5


def test_leak_by_hand(model):
    """A key of three pixels: the energy of their columns, over 3 / 48 of all."""
    key = torch.eye(48, dtype=torch.float64)[:, [0, 5, 17]]
    matrix = (model.vit.patch_embed.proj.weight.detach().double() / model.std.double().reshape(1, 3, 1, 1)).flatten(1)
    expected = matrix[:, [0, 5, 17]].square().sum() / matrix.square().sum() * 16
    assert fingerprint.leak(model, key) == pytest.approx(expected.item())


def test_angles_by_hand():
    """W sees the first 16 of 48 pixels; the other model one direction of them turned by 30 degrees."""
    model = tiny(std=(1.0, 1.0, 1.0))
    weight = model.vit.patch_embed.proj.weight
    weight.data = torch.eye(48)[:16].reshape(weight.shape).contiguous()
    key = fingerprint.make_key(model)
    turned = torch.eye(48)[:16]
    turned[3, 3], turned[3, 40] = np.cos(np.pi / 6), np.sin(np.pi / 6)
    weight.data = turned.reshape(weight.shape)
    angles = fingerprint.principal_angles(model, key)
    assert angles[:15].max() < 1e-4
    assert angles[15] == pytest.approx(30, abs=1e-4)
    assert fingerprint.leak(model, key) == pytest.approx(np.sin(np.pi / 6) ** 2 / 16 * 48 / 32, rel=1e-5)


@pytest.mark.parametrize(("wide", "rank"), [(16, 16), (16, 7), (40, 40)])
def test_angles_are_those_of_the_row_spaces(wide, rank):
    """Also where the suspect sees fewer directions than the key's model, or more of them than the key has."""
    small = dict(img_size=16, patch_size=4, embed_dim=wide, depth=1, num_heads=2)
    model, suspect = (make_vit("shapes_vit", seed=seed, **small) for seed in (0, 1))
    own = PatchNullspace(model)
    suspect.vit.patch_embed.proj.weight.data[rank:] = 0
    found = fingerprint.principal_angles(suspect, fingerprint.make_key(model))
    expected = np.degrees(scipy.linalg.subspace_angles(PatchNullspace(suspect).seen.T, own.seen.T))
    assert len(found) == rank
    np.testing.assert_allclose(found, expected[::-1], atol=1e-5)


def test_finetuning_leaks_by_how_much_the_weights_moved(model, key):
    leaks = [
        fingerprint.leak(fingerprint.moved(model, size, generator=generator(0)), key) for size in (0.001, 0.01, 0.1)
    ]
    assert leaks[0] < leaks[1] < fingerprint.THRESHOLD
    assert leaks[1] == pytest.approx(100 * leaks[0], rel=0.01)  # of second order
    assert leaks[2] == pytest.approx(0.01, rel=0.3)


def test_rotations(model, key):
    of_tokens, of_pixels = (fingerprint.rotated(model, s, generator=generator(0)) for s in ("tokens", "pixels"))
    assert fingerprint.leak(of_tokens, key) < 1e-10
    assert fingerprint.leak(of_pixels, key) > 0.3
    own = model.vit.patch_embed.proj.weight
    for other in (of_tokens, of_pixels):
        weight = other.vit.patch_embed.proj.weight
        assert not torch.allclose(weight, own, atol=0.01)
        assert weight.norm().item() == pytest.approx(own.norm().item(), rel=1e-5)


def test_table_of_suspects(model, key):
    suspects = {
        "itself": model,
        "finetuned": fingerprint.moved(model, 0.01, generator=generator(0)),
        "other": stranger(1),
        "larger": tiny(patch_size=8),
    }
    table = fingerprint.fingerprint_table(key, suspects).set_index("suspect")
    assert table.identified.tolist() == [True, True, False, False]
    assert np.isnan(table.leak["larger"])
    assert table.leak["other"] == pytest.approx(fingerprint.leak(suspects["other"], key))
    assert table.largest_angle["other"] > table.median_angle["other"] > 20


def test_false_positives_by_kind(model, key):
    seeds = {str(seed): stranger(seed) for seed in range(1, 11)}
    thieves = {"own": model, "other": stranger(11)}
    table = fingerprint.fingerprint_table(key, seeds | thieves).assign(kind=["seed"] * 10 + ["mixed"] * 2)
    rates = fingerprint.false_positives(table).set_index("kind")
    assert rates.index.tolist() == ["seed", "mixed", "all"]
    assert rates.value.tolist() == [0, 0.5, pytest.approx(1 / 12)]
    assert rates.n.tolist() == [10, 2, 12]
    assert rates.low["seed"] == 0 < rates.high["seed"] < 0.3
    assert rates.smallest_leak["seed"] == table.leak[:10].min() > rates.smallest_leak["all"] == table.leak[10]
    assert rates.smallest_median_angle["seed"] == table.median_angle[:10].min()
    lenient = fingerprint.fingerprint_table(key, seeds, threshold=2).assign(kind="seed")
    assert fingerprint.false_positives(lenient).value.tolist() == [1, 1]


def test_reach_is_the_relative_move(model):
    assert fingerprint.reach(model, model) == 0
    moved = fingerprint.moved(model, 0.07, generator=generator(0))
    assert fingerprint.reach(model, moved) == pytest.approx(0.07, rel=1e-4)
    half = fingerprint.moved(model, 0, generator=generator(0))
    half.vit.patch_embed.proj.weight.data *= 1.5
    assert fingerprint.reach(model, half) == pytest.approx(0.5)
    assert fingerprint.reach(half, model) == pytest.approx(1 / 3)


def test_shuffled_weights_are_a_stranger(model, key):
    other = fingerprint.shuffled(model, generator=generator(0))
    own, found = (m.vit.patch_embed.proj.weight for m in (model, other))
    assert torch.equal(found.flatten().sort().values, own.flatten().sort().values)
    assert not torch.equal(found, own)
    assert fingerprint.leak(other, key) > 0.5
    assert torch.equal(other.vit.head.weight, model.vit.head.weight)


def test_shipped_strangers_are_what_their_records_say():
    settings = resolve("smoke")
    owner, strangers = open_model(settings), [open_stranger(settings, seed) for seed in (1, 2)]
    images, labels = render("val", range(200), size=48)
    for seed, model in enumerate(strangers, start=1):
        record = weights_record(f"shapes_vit_seed{seed}")
        assert record["config"]["seed"] == seed
        assert accuracy(model, images, labels) == pytest.approx(record["top1"]["val"], abs=0.06)
        assert not torch.allclose(*(m.vit.patch_embed.proj.weight for m in (owner, model)), atol=0.1)


def test_a_stranger_is_trained_once_from_another_seed():
    """And away from where its seed started."""
    overrides = {"pretrain.size": 24, "fingerprint.steps": 3, "fingerprint.batch": 8, "pretrain.report_images": 4}
    settings = resolve("smoke", overrides={"weights": "train", **overrides})
    one, two, again = (open_stranger(settings, seed) for seed in (1, 2, 1))
    first, second, third = (m.vit.patch_embed.proj.weight for m in (one, two, again))
    assert one.image_shape == (3, 24, 24)
    assert torch.equal(first, third)
    assert not torch.allclose(first, second, atol=0.01)
    (record,) = [r for r in store_path().rglob("*.json") if json.loads(r.read_text())["config"]["seed"] == 1]
    config = json.loads(record.read_text())["config"]
    assert (config["steps"], config["batch"], config["report_images"]) == (3, 8, 4)
    with pytest.raises(ValueError, match=r"seed must not be 0, which is added to the model's own"):
        open_stranger(settings, 0)


def test_a_key_on_disk(tmp_path, key):
    path = fingerprint.write_key(tmp_path / "key.safetensors", key)
    assert torch.equal(fingerprint.read_key(path), key)
    with pytest.raises(FileNotFoundError, match=r"no key at .*none.*: make one with `nslib fingerprint --key PATH"):
        fingerprint.read_key(tmp_path / "none")
    save_file({"key": key[:, 0].contiguous()}, tmp_path / "vector")
    with pytest.raises(ValueError, match=r"vector holds no key \(a matrix of float64\), but torch.float64 \(48,\)"):
        fingerprint.read_key(tmp_path / "vector")
    for i, claims_all in enumerate((key * 1e-3, key * 0, key * torch.nan, torch.eye(len(key), dtype=key.dtype))):
        fingerprint.write_key(tmp_path / f"all{i}", claims_all)
        with pytest.raises(ValueError, match=rf"all{i} holds no key \(an orthonormal basis\)"):
            fingerprint.read_key(tmp_path / f"all{i}")
    save_file({"weights": key}, tmp_path / "other")
    (tmp_path / "text").write_text("no key")
    for name in ("other", "text"):
        with pytest.raises(ValueError, match=f"{name} holds no key"):
            fingerprint.read_key(tmp_path / name)


def test_mistakes(model, key):
    with pytest.raises(ValueError, match="this patch embedding, 48 -> 64, has the trivial nullspace only"):
        fingerprint.make_key(tiny(embed_dim=64))
    with pytest.raises(ValueError, match="key is for patches of 48 pixels, tiny has 192: not the same model"):
        fingerprint.leak(tiny(patch_size=8), key)
    with pytest.raises(ValueError, match="size must be >= 0, got -1"):
        fingerprint.moved(model, -1, generator=generator(0))
    with pytest.raises(
        ValueError, match=r"other must have a patch weight \(16, 3, 4, 4\) as tiny has, got \(16, 3, 8, 8\)"
    ):
        fingerprint.reach(model, tiny(patch_size=8))
    for name, least in (("untrained", 1), ("permuted", 1), ("trained", 0)):
        with pytest.raises(ValueError, match=f"{name} must be >= {least}, got -1"):
            FingerprintStudy(**{name: -1})
    with pytest.raises(ValueError, match="side must be tokens or pixels, got 'both'"):
        fingerprint.rotated(model, "both", generator=generator(0))


def test_models_of_another_patch_size_are_no_strangers(model, key):
    """The key says nothing of them, so that they do not lower the rate."""
    table = fingerprint.fingerprint_table(key, {"own": model, "other": stranger(1)}).assign(kind="mixed")
    unlike = table.iloc[1:].assign(leak=float("nan"), median_angle=float("nan"), identified=False)
    rates = fingerprint.false_positives(pd.concat([table, unlike, unlike.assign(kind="unlike")]))
    assert rates.kind.tolist() == ["mixed", "all"]
    assert rates.n.tolist() == [2, 2]
    assert rates.value.tolist() == [0.5, 0.5]
