"""Training checkpoints in the forms in which they are published, made here, read back."""

import argparse
from collections import OrderedDict

import pytest
import torch
from conftest import TINY, make_vit, random_images
from safetensors.torch import save_file

from nslib.finetune.checkpoints import load_checkpoint, read_checkpoint
from nslib.models import load_model
from nslib.nullspace.patch import PatchNullspace

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
        found = load_checkpoint(path, "shapes_vit", averaged=averaged, **TINY)
        assert torch.allclose(found.mean.flatten(), torch.tensor(MEAN))
        assert torch.allclose(found.std.flatten(), torch.tensor(STD))
        normalised = (images - torch.tensor(MEAN).reshape(1, 3, 1, 1)) / torch.tensor(STD).reshape(1, 3, 1, 1)
        assert torch.allclose(found(images), source.vit(normalised), atol=1e-5)
        assert not found.training


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_normalisation_in_any_shape(model, tmp_path, shape):
    found = read_checkpoint(save(tmp_path / "c.pth", {"state_dict": with_normalisation(model, shape=shape)}))
    assert found.mean == pytest.approx(MEAN)
    assert found.std == pytest.approx(STD)


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "1.", "module.1.", "1.module."])
@pytest.mark.parametrize("key", [None, "state_dict", "state_dict_ema", "model"])
def test_prefixes_and_places(model, tmp_path, prefix, key):
    state = renamed(model.vit.state_dict(), prefix)
    found = load_checkpoint(save(tmp_path / "c.pth", {key: state} if key else state), "shapes_vit", **TINY)
    assert all(torch.equal(w, model.vit.state_dict()[n]) for n, w in found.vit.state_dict().items())
    assert found.mean.flatten().tolist() == [0.5] * 3  # the tag's own, as the file has none


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "backbone.", "net.model."])
@pytest.mark.parametrize("key", ["model_ema", "state_dict"])
def test_prefixes_of_other_tools(model, tmp_path, prefix, key):
    state = renamed(model.vit.state_dict(), prefix)
    found = load_checkpoint(save(tmp_path / "c.pth", {key: state, "epoch": 3}), "shapes_vit", **TINY)
    assert all(torch.equal(w, model.vit.state_dict()[n]) for n, w in found.vit.state_dict().items())


def test_a_named_normalisation_beside_a_named_model(model, tmp_path):
    layer = {"normalize.mean": torch.tensor(MEAN), "normalize.std": torch.tensor(STD)}
    path = save(tmp_path / "c.pth", layer | renamed(model.vit.state_dict(), "model."))
    found = load_checkpoint(path, "shapes_vit", **TINY)
    assert found.mean.flatten().tolist() == pytest.approx(MEAN)
    assert all(torch.equal(w, model.vit.state_dict()[n]) for n, w in found.vit.state_dict().items())


def test_an_adapter_is_to_be_merged_first(model, tmp_path):
    state = model.vit.state_dict() | {"blocks.0.attn.qkv.lora_A.default.weight": torch.ones(2, 24)}
    with pytest.raises(ValueError, match="holds an adapter beside the weights: merge it into them first"):
        read_checkpoint(save(tmp_path / "c.pth", state))


def test_average_that_was_not_kept(model, tmp_path):
    path = save(tmp_path / "c.pth", {"state_dict": model.vit.state_dict(), "state_dict_ema": None})
    assert load_checkpoint(path, "shapes_vit", **TINY)(random_images(model, 1)).shape == (1, 10)


@pytest.mark.parametrize("change", [dict(depth=3), dict(embed_dim=48), dict(num_classes=7)])
def test_another_architecture_is_refused(model, tmp_path, change):
    path = save(tmp_path / "c.pth.tar", {"state_dict": with_normalisation(model)})
    with pytest.raises(
        ValueError, match=r"c\.pth\.tar does not fit shapes_vit: tensors .*; (name the model|load it without num)"
    ):
        load_checkpoint(path, "shapes_vit", **TINY | change)


def test_head_has_the_classes_of_the_file_unless_others_are_asked_for(model, tmp_path):
    seven = make_vit("shapes_vit", **TINY, num_classes=7, spread=0.1)
    path = save(tmp_path / "c.pth", {"state_dict": with_normalisation(seven)})
    found = load_checkpoint(path, "shapes_vit", **TINY)
    assert found.num_classes == 7
    assert torch.equal(found.vit.head.weight, seven.vit.head.weight)
    with pytest.raises(ValueError, match=r"2 of another shape \(head\.bias \(7,\), expected \(10,\)\)"):
        load_checkpoint(path, "shapes_vit", num_classes=10, **TINY)


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
    found = load_checkpoint(path, "shapes_vit", **TINY)
    assert found.stored_dtype == dtype
    nulls = [PatchNullspace(m) for m in (found, load_model("shapes_vit", tmp_path / "c.safetensors", **TINY))]
    assert [null.rank for null in nulls] == [12, 12]


class Surprise:
    """What a pickle can do when it is opened."""

    def __reduce__(self):
        return (print, ("opened",))


def test_code_in_a_checkpoint_is_not_run(model, tmp_path, capsys):
    path = save(tmp_path / "c.pth.tar", {"state_dict": model.vit.state_dict(), "extra": Surprise()})
    with pytest.raises(ValueError, match=r"c\.pth\.tar is damaged or holds more than tensors .* could run code"):
        load_checkpoint(path, "shapes_vit", **TINY)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kept", [0, 10, 1000])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as torch saved before 1.6"])
def test_damaged_checkpoint(model, tmp_path, zipped, kept):
    path = tmp_path / "c.pth.tar"
    torch.save({"state_dict": model.vit.state_dict()}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"c\.pth\.tar is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, {"state_dict": {}}, [1, 2], torch.ones(2)])
def test_checkpoint_without_weights(tmp_path, content):
    with pytest.raises(
        ValueError, match=r"c\.pth holds no weights: expected a state dict, or one under state_dict_ema"
    ):
        read_checkpoint(save(tmp_path / "c.pth", content))


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*c\.pth"):
        read_checkpoint(tmp_path / "c.pth")
