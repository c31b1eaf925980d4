"""Files of weights: training checkpoints in the forms in which they are published, made here, read back."""

import argparse
import json
from collections import OrderedDict

import pytest
import timm
import torch
from conftest import SMALL, TINY, make_vit, random_images
from safetensors.torch import save_file

from nslib.models import load_model, put_weights
from nslib.nullspace.patch import PatchNullspace
from nslib.store import model_digest
from nslib.vit.weights import read_weights, save_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def model():
    return make_vit("shapes_vit", **TINY, spread=0.1)


def save(path, content):
    torch.save(content, path)
    return path


def renamed(state, prefix):
    return OrderedDict((prefix + k, v.clone()) for k, v in state.items())


def with_normalisation(model, prefix="module.", shape=(3,)):
    """A Sequential of a normalisation layer and the ViT, inside torch's parallel wrapper."""
    layer = {"0.mean": torch.tensor(MEAN).reshape(shape), "0.std": torch.tensor(STD).reshape(shape)}
    return renamed(layer | renamed(model.vit.state_dict(), "1."), prefix)


def test_easyrobust_form(model, tmp_path):
    """`state_dict` and `state_dict_ema`, `module.` prefixes, a normalisation layer at index 0, the run's arguments."""
    other = make_vit("shapes_vit", **TINY, spread=0.1, seed=9)
    content = {
        "epoch": 299, "arch": "vit", "args": argparse.Namespace(lr=1e-3), "optimizer": {"param_groups": []},
        "state_dict": with_normalisation(other), "state_dict_ema": with_normalisation(model, prefix=""), "metric": 81.5,
    }  # fmt: skip
    path = save(tmp_path / "model_best.pth.tar", content)
    images = random_images(model, 3)
    for averaged, source in ((True, model), (False, other)):
        found = load_model("shapes_vit", path, averaged=averaged, **TINY)
        assert torch.allclose(found.mean.flatten(), torch.tensor(MEAN))
        assert torch.allclose(found.std.flatten(), torch.tensor(STD))
        normalised = (images - torch.tensor(MEAN).reshape(1, 3, 1, 1)) / torch.tensor(STD).reshape(1, 3, 1, 1)
        assert torch.allclose(found(images), source.vit(normalised), atol=1e-5)
        assert not found.training


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_normalisation_in_any_shape(model, tmp_path, shape):
    found = read_weights(save(tmp_path / "c.pth", {"state_dict": with_normalisation(model, shape=shape)}))
    assert found.normalisation == {"mean": pytest.approx(MEAN), "std": pytest.approx(STD)}


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "1.", "module.1.", "1.module."])
@pytest.mark.parametrize("key", [None, "state_dict", "state_dict_ema", "model"])
def test_prefixes_and_places(model, tmp_path, prefix, key):
    state = renamed(model.vit.state_dict(), prefix)
    found = load_model("shapes_vit", save(tmp_path / "c.pth", {key: state} if key else state), **TINY)
    assert all(torch.equal(w, model.vit.state_dict()[n]) for n, w in found.vit.state_dict().items())
    assert found.mean.flatten().tolist() == [0.5] * 3  # the tag's own, as the file has none


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "backbone.", "net.model."])
@pytest.mark.parametrize("key", ["model_ema", "state_dict"])
def test_prefixes_of_other_tools(model, tmp_path, prefix, key):
    state = renamed(model.vit.state_dict(), prefix)
    found = load_model("shapes_vit", save(tmp_path / "c.pth", {key: state, "epoch": 3}), **TINY)
    assert all(torch.equal(w, model.vit.state_dict()[n]) for n, w in found.vit.state_dict().items())


def test_a_named_normalisation_beside_a_named_model(model, tmp_path):
    layer = {"normalize.mean": torch.tensor(MEAN), "normalize.std": torch.tensor(STD)}
    path = save(tmp_path / "c.pth", layer | renamed(model.vit.state_dict(), "model."))
    found = load_model("shapes_vit", path, **TINY)
    assert found.mean.flatten().tolist() == pytest.approx(MEAN)
    assert all(torch.equal(w, model.vit.state_dict()[n]) for n, w in found.vit.state_dict().items())


def test_a_normalisation_behind_a_prefix_that_all_have(model, tmp_path):
    path = save(tmp_path / "c.pth", {"state_dict": with_normalisation(model, prefix="model.")})
    assert load_model("shapes_vit", path, **TINY).std.flatten().tolist() == pytest.approx(STD)


def test_half_a_normalisation_is_not_dropped_unseen(model, tmp_path):
    state = with_normalisation(model, prefix="")
    del state["0.std"]
    with pytest.raises(ValueError, match=r"unknown \(0\.mean\)"):
        load_model("shapes_vit", save(tmp_path / "c.pth", state), **TINY)


def test_an_adapter_is_to_be_merged_first(model, tmp_path):
    state = model.vit.state_dict() | {"blocks.0.attn.qkv.lora_A.default.weight": torch.ones(2, 24)}
    with pytest.raises(ValueError, match="holds an adapter beside the weights: merge it into them first"):
        read_weights(save(tmp_path / "c.pth", state))


def test_average_that_was_not_kept(model, tmp_path):
    path = save(tmp_path / "c.pth", {"state_dict": model.vit.state_dict(), "state_dict_ema": None})
    assert load_model("shapes_vit", path, **TINY)(random_images(model, 1)).shape == (1, 10)


@pytest.mark.parametrize("change", [dict(depth=3), dict(embed_dim=48), dict(num_classes=7)])
def test_another_architecture_is_refused(model, tmp_path, change):
    path = save(tmp_path / "c.pth.tar", {"state_dict": with_normalisation(model)})
    with pytest.raises(
        ValueError, match=r"c\.pth\.tar does not fit shapes_vit: tensors .*; (name the model|load it without num)"
    ):
        load_model("shapes_vit", path, **TINY | change)


def test_head_has_the_classes_of_the_file_unless_others_are_asked_for(model, tmp_path):
    seven = make_vit("shapes_vit", **TINY, num_classes=7, spread=0.1)
    path = save(tmp_path / "c.pth", {"state_dict": with_normalisation(seven)})
    found = load_model("shapes_vit", path, **TINY)
    assert found.num_classes == 7
    assert torch.equal(found.vit.head.weight, seven.vit.head.weight)
    with pytest.raises(ValueError, match=r"2 of another shape \(head\.bias \(7,\), expected \(10,\)\)"):
        load_model("shapes_vit", path, num_classes=10, **TINY)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "behind a normalisation"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rank_is_that_of_the_same_weights_as_safetensors(model, tmp_path, dtype, wrapped):
    """Half of the patch embedding's rows are sums of others but for the rounding to a short type."""
    weight = model.vit.patch_embed.proj.weight.data
    weight[12:] = weight[:12] + weight[:12].roll(1, 0)
    short = {k: v.to(dtype) for k, v in model.vit.state_dict().items()}
    save_file(short, tmp_path / "c.safetensors")
    state = with_normalisation(load_model("shapes_vit", tmp_path / "c.safetensors", **TINY)) if wrapped else short
    path = save(tmp_path / "c.pth", {k: v.to(dtype) for k, v in state.items()})
    found = load_model("shapes_vit", path, **TINY)
    assert found.stored_dtype == dtype
    nulls = [PatchNullspace(m) for m in (found, load_model("shapes_vit", tmp_path / "c.safetensors", **TINY))]
    assert [null.rank for null in nulls] == [12, 12]


@pytest.mark.parametrize("name", ["c", "c.bak", "epoch_3"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as torch saved before 1.6"])
def test_a_checkpoint_of_another_suffix_is_known_by_its_first_bytes(model, tmp_path, name, zipped):
    torch.save({"state_dict": model.vit.state_dict()}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    found = load_model("shapes_vit", tmp_path / name, **TINY)
    assert torch.equal(found.vit.head.weight, model.vit.head.weight)
    save_weights(model, tmp_path / "w.safetensors")
    (tmp_path / name).write_bytes((tmp_path / "w.safetensors").read_bytes())
    assert torch.equal(load_model("shapes_vit", tmp_path / name, **TINY).vit.head.weight, model.vit.head.weight)


class Surprise:
    """What a pickle can do when it is opened."""

    def __reduce__(self):
        return (print, ("opened",))


def test_code_in_a_checkpoint_is_not_run(model, tmp_path, capsys):
    path = save(tmp_path / "c.pth.tar", {"state_dict": model.vit.state_dict(), "extra": Surprise()})
    with pytest.raises(ValueError, match=r"c\.pth\.tar is damaged or holds more than tensors .* could run code"):
        load_model("shapes_vit", path, **TINY)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kept", [0, 10, 1000])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as torch saved before 1.6"])
def test_damaged_checkpoint(model, tmp_path, zipped, kept):
    path = tmp_path / "c.pth.tar"
    torch.save({"state_dict": model.vit.state_dict()}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"c\.pth\.tar is damaged"):
        read_weights(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, {"state_dict": {}}, [1, 2], torch.ones(2), {0: torch.ones(2)}])
def test_checkpoint_without_weights(tmp_path, content):
    with pytest.raises(
        ValueError, match=r"c\.pth holds no weights: expected a state dict, or one under state_dict_ema"
    ):
        read_weights(save(tmp_path / "c.pth", content))


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*c\.pth: pass a safetensors file, .*checkpoint"):
        load_model("shapes_vit", tmp_path / "c.pth")


# The size of images

CONFIGURATIONS = {
    "a class token": {"name": "vit_small_patch8_224"},
    "two prefix tokens": {"name": "deit_tiny_distilled_patch16_224", "img_size": 64},
    "no class token": {"name": "vit_base_patch16_gap_224", "img_size": 64},
    "positions of patches alone": {"name": "vit_small_patch14_reg4_dinov2", "img_size": 56},
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_file_brings_its_size(tmp_path, kind):
    """Also where it tells mean and std, and behind the name of a model for another size."""
    small = make_vit(**CONFIGURATIONS[kind], spread=0.1)
    side = 2 * small.image_shape[1]
    large = make_vit(**CONFIGURATIONS[kind] | {"img_size": side}, spread=0.1)
    save_weights(large, tmp_path / "w.safetensors")
    found = put_weights(small, read_weights(tmp_path / "w.safetensors"), "w")
    assert found.image_shape == (3, side, side)
    images = random_images(large, 2)
    assert torch.equal(found(images), large(images))
    assert model_digest(found) == model_digest(large)


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_weights_for_a_size_that_is_asked_for_are_those_that_timm_makes(tmp_path, kind):
    given = SMALL | CONFIGURATIONS[kind]
    trained = make_vit(**given, spread=0.1)
    save_weights(trained, tmp_path / "w.safetensors")
    name, side = given.pop("name"), given.pop("img_size")
    found = load_model(name, tmp_path / "w.safetensors", img_size=3 * side, **given)
    there = {"file": str(tmp_path / "w.safetensors")}
    expected = timm.create_model(name, **given, img_size=3 * side, pretrained=True, pretrained_cfg_overlay=there)
    assert found.image_shape == (3, 3 * side, 3 * side)
    assert found.vit.pos_embed.shape != trained.vit.pos_embed.shape
    assert torch.equal(found.vit.pos_embed, expected.pos_embed)
    assert torch.equal(found.vit.head.weight, trained.vit.head.weight)


@pytest.mark.parametrize("size", [(32, 48), (30, 30), (226, 224)], ids=["no square", "no whole patches", "same grid"])
@pytest.mark.parametrize("positions", ["learn", "none"])
def test_a_size_that_no_tensor_tells_is_kept(tmp_path, size, positions):
    architecture = {k: v for k, v in SMALL.items() if k != "img_size"} | {"pos_embed": positions}
    model = make_vit("vit_small_patch8_224", **architecture, img_size=size, spread=0.1)
    save_weights(model, tmp_path / "w.safetensors")
    images = random_images(model, 2)
    found = load_model("vit_small_patch8_224", tmp_path / "w.safetensors", **architecture)
    assert found.image_shape == model.image_shape
    assert torch.equal(found(images), model(images))
    larger = load_model("vit_small_patch8_224", tmp_path / "w.safetensors", img_size=(64, 96), **architecture)
    assert larger.image_shape == (3, 64, 96)


def test_a_file_as_it_was_written_before_and_files_of_others(model, tmp_path):
    """Whose metadata may have any entries."""
    told = {"normalisation": json.dumps({"mean": MEAN, "std": STD}), "classes": json.dumps(list("abcdefghij"))}
    save_file(model.vit.state_dict(), tmp_path / "before.safetensors", metadata=told)
    found = load_model("shapes_vit", tmp_path / "before.safetensors", **TINY)
    assert found.std.flatten().tolist() == pytest.approx(STD)
    assert found.classes == tuple("abcdefghij")
    others = {"classes": "cat,dog", "img_size": "224", "format": "pt"}
    save_file(model.vit.state_dict(), tmp_path / "others.safetensors", metadata=others)
    found = load_model("shapes_vit", tmp_path / "others.safetensors", **TINY)
    assert found.std.flatten().tolist() == [0.5] * 3
    assert found.classes == ()


def test_the_same_model_is_the_same_file(model, tmp_path):
    """Also with names of its classes: what stands in the metadata has one order."""
    model.classes = tuple("abcdefghij")
    for i in range(8):
        save_weights(model, tmp_path / f"{i}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_reading_a_file_draws_no_random_number(tmp_path):
    save_weights(make_vit("shapes_vit", num_classes=7, img_size=24), tmp_path / "w.safetensors")
    before = torch.get_rng_state()
    architecture = {k: v for k, v in SMALL.items() if k not in ("img_size", "num_classes")}
    assert load_model("shapes_vit", tmp_path / "w.safetensors", **architecture).num_classes == 7
    assert torch.equal(torch.get_rng_state(), before)


def test_positions_of_no_square_are_refused_where_the_file_does_not_tell_its_size(tmp_path):
    save_file(make_vit(img_size=(32, 64)).vit.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"of another shape \(pos_embed \(1, 9, 48\), .*in Python with its img_size"):
        put_weights(make_vit(), read_weights(tmp_path / "w.safetensors"), "w")


def test_another_patch_size_is_no_other_image_size(tmp_path):
    save_weights(make_vit("vit_small_patch8_224"), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"does not fit .* of another shape \(patch_embed\.proj\.weight"):
        put_weights(make_vit(), read_weights(tmp_path / "w.safetensors"), "w")
