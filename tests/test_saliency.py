"""Saliency: CP-LRP adds up, the rest is what the libraries say it is, and equal tokens have equal maps."""

import copy
import importlib

import pytest
import torch
from conftest import make_vit, random_images

from nslib.analysis import lrp, saliency
from nslib.analysis.pictures import eight_bit
from nslib.nullspace.patch import PatchNullspace
from nslib.runtime import generator
from nslib.vit.attention_maps import attention_maps

FAMILIES = {
    "class token": {},
    "average pooling": dict(global_pool="avg", class_token=False, fc_norm=True),
    "registers and layer scale": dict(reg_tokens=2, init_values=0.5),
}


@pytest.fixture
def model():
    """A patch of 3 * 16 * 16 pixels and 48 numbers: a wide nullspace. float64, so that algebra shows."""
    return make_vit(spread=0.05).double()


@pytest.fixture
def images(model):
    return random_images(model, 3).double()


LABELS = torch.tensor([0, 4, 9])


# CP-LRP


@pytest.mark.parametrize("family", FAMILIES)
def test_relevance_adds_up_to_the_logit(family):
    """Tokens and everything constant, each gradient x itself."""
    model = make_vit(spread=0.05, **FAMILIES[family]).double()
    tokens = model.embed(random_images(model, 1).double()).detach().requires_grad_()
    constants = {n: p for n, p in model.named_parameters() if _is_constant(n)}
    with lrp.conservative(model):
        logit = model.logits_from_tokens(tokens)[0, 3]
        relevance = torch.autograd.grad(logit, [tokens, *constants.values()], allow_unused=True)
    used = [g for g in relevance if g is not None]
    terms = [(g * t).sum() for g, t in zip(relevance, [tokens, *constants.values()], strict=True) if g is not None]
    assert len(used) > 15
    assert torch.stack(terms).sum().item() == pytest.approx(logit.item(), abs=1e-10)
    assert abs(terms[0].item()) > 1e-3


def _is_constant(name):
    return (name.endswith("bias") and "patch_embed" not in name) or name.split(".")[-1] in (
        "cls_token", "pos_embed", "reg_token")  # fmt: skip


def _of_tokens(model, images):
    """Relevance (B, N) of each patch token."""
    tokens = model.embed(images).detach().requires_grad_()
    with lrp.conservative(model):
        (gradient,) = torch.autograd.grad(model.logits_from_tokens(tokens).gather(1, LABELS.unsqueeze(1)).sum(), tokens)
    return (gradient * tokens).sum(2)


def test_without_constants_tokens_carry_the_whole_logit():
    model = make_vit(class_token=False, global_pool="avg").double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if _is_constant(name):
                p.zero_()
        images = random_images(model, 3).double()
        logits = model(images)
    relevance = _of_tokens(model, images)
    assert relevance.shape == (3, 4)
    assert torch.allclose(relevance.sum(1), logits.gather(1, LABELS.unsqueeze(1))[:, 0], atol=1e-10)


def test_plain_gradients_do_not_add_up():
    """What the rules are for."""
    model = make_vit(class_token=False, global_pool="avg").double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if _is_constant(name):
                p.zero_()
        tokens = model.embed(random_images(model, 1).double())
    tokens = tokens.requires_grad_()
    logit = model.logits_from_tokens(tokens)[0, 0]
    (gradient,) = torch.autograd.grad(logit, tokens)
    assert abs((gradient * tokens).sum().item() - logit.item()) > 0.5 * abs(logit.item())


def test_outputs_are_as_ever_and_hooks_go(model, images):
    with torch.no_grad():
        before = model(images)
        with lrp.conservative(model):
            during = model(images)
    assert torch.allclose(before, during, atol=1e-10)
    assert all(not m._forward_hooks for m in model.modules())
    assert model.vit.blocks[0].attn.fused_attn
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_pixels_of_a_patch_carry_its_tokens_relevance(model, images):
    """Up to the constants of the embedding: its bias and the mean of the normalisation."""
    model.vit.patch_embed.proj.bias.data.zero_()
    model.mean.zero_()
    pixels = saliency.patch_map(model, lrp.pixel_relevance(model, images, LABELS).sum(1))
    assert torch.allclose(pixels, _of_tokens(model, images), atol=1e-10)


def test_models_without_rules(model):
    other = copy.deepcopy(model)
    other.vit.blocks[1].mlp = torch.nn.Identity()
    with (
        pytest.raises(TypeError, match="block 1 of vit_tiny_patch16_224 has mlp Identity: CP-LRP needs Mlp"),
        lrp.conservative(other),
    ):
        pass
    gated = copy.deepcopy(model)
    gated.vit.blocks[0].attn.gate = torch.nn.Linear(32, 32)
    with pytest.raises(TypeError, match=r"block 0 of .* has attn Attention: CP-LRP needs Attention without a gate"):
        lrp.pixel_relevance(gated, torch.zeros(1, 3, 32, 32).double(), torch.tensor([0]))
    pooled = make_vit(global_pool="map", class_token=False)
    with pytest.raises(TypeError, match="pools by attention"), lrp.conservative(pooled):
        pass
    with pytest.raises(ValueError, match="in training mode"):
        lrp.pixel_relevance(model.train(), torch.zeros(1, 3, 32, 32).double(), torch.tensor([0]))


# Maps


def test_gradient_maps_by_hand(model, images):
    pytest.importorskip("captum")
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).gather(1, LABELS.unsqueeze(1)).sum(), x)
    assert torch.allclose(saliency.saliency_map(model, images, LABELS, "gradient"), gradient.sum(1))
    product = saliency.saliency_map(model, images, LABELS, "input x gradient")
    assert torch.allclose(product, (gradient * images).sum(1))
    path = saliency.saliency_map(model, images, LABELS, "integrated gradients", ig_steps=50)
    with torch.no_grad():
        rise = (model(images) - model(torch.zeros_like(images))).gather(1, LABELS.unsqueeze(1))[:, 0]
    assert torch.allclose(path.sum((1, 2)), rise, atol=1e-3)  # completeness


def test_rollout_by_hand():
    """One block, uniform attention by queries of zero: half its own token, which is a prefix, half shared evenly."""
    model = make_vit(depth=1)
    model.vit.blocks[0].attn.qkv.weight.data[:48] = 0
    rolled = saliency.saliency_map(model, random_images(model, 1), LABELS[:1], "attention rollout")
    assert torch.allclose(rolled, torch.full((1, 32, 32), 0.5 / 5))


def test_rollout_of_a_head_that_averages_leaves_prefix_tokens_out():
    model = make_vit(depth=1, reg_tokens=3, class_token=False, global_pool="avg")
    model.vit.blocks[0].attn.qkv.weight.data[:48] = 0
    rolled = saliency.saliency_map(model, random_images(model, 1), LABELS[:1], "attention rollout")
    assert torch.allclose(rolled, torch.full((1, 32, 32), (1 / 7 + 1 / 4) / 2))  # to each of the four, from them alone


def test_rollout_of_two_blocks_by_hand():
    """The later map times the earlier one, from the tokens' own attention weights."""
    model = make_vit(depth=2, seed=1).double()
    images = random_images(model, 1).double()
    with attention_maps(model, range(2)) as maps, torch.no_grad():
        model(images)
    first, second = ((maps[i].mean(1)[0] + torch.eye(maps[i].shape[-1])) / 2 for i in range(2))
    rolled = saliency.saliency_map(model, images, LABELS[:1], "attention rollout")
    expected = (second @ first)[0, 1:].reshape(2, 2)
    assert torch.allclose(rolled[0, ::16, ::16], expected)
    assert not torch.allclose((first @ second)[0, 1:].reshape(2, 2), expected)


def test_rollout_lies_on_its_patches_where_these_do_not_cover_the_image():
    model = make_vit(depth=1, img_size=40)
    images = random_images(model, 1)
    rolled = saliency.saliency_map(model, images, LABELS[:1], "attention rollout")
    with attention_maps(model, range(1)) as maps, torch.no_grad():
        model(images)
    assert torch.allclose(rolled[0, :32:16, :32:16], maps[0].mean(1)[0, 0, 1:].reshape(2, 2) / 2)
    assert torch.equal(rolled[0, :32, :32], rolled[0, :32:16, :32:16].repeat_interleave(16, 0).repeat_interleave(16, 1))
    assert rolled.shape == (1, 40, 40)
    assert not rolled[0, 32:].any()
    assert not rolled[0, :, 32:].any()


def test_grad_cam_is_per_patch_and_leaves_no_gradients(model, images):
    pytest.importorskip("pytorch_grad_cam")
    model = model.float()
    own, *others = model.parameters()
    own.grad = torch.ones_like(own)  # that of whoever trains the model
    found = saliency.saliency_map(model, images.float(), LABELS, "Grad-CAM")
    assert (own.grad == 1).all()
    assert found.shape == (3, 32, 32)
    assert 0 <= found.min() < found.max() <= 1
    assert all(p.grad is None for p in others)
    assert all(not m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("method", saliency.METHODS)
def test_equal_tokens_have_equal_maps(model, images, method):
    """Nullspace noise changes no map of patches, and of pixels only those that multiply by the pixel itself."""
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    noise = PatchNullspace(model).sample(3, peak=0.5, generator=generator(0), dtype=torch.float64)
    maps = [saliency.saliency_map(model, x, LABELS, method) for x in (images, images + noise)]
    patches = [saliency.patch_map(model, m) for m in maps]
    size = patches[0].abs().max()
    assert (patches[1] - patches[0]).abs().max() < 1e-5 * size
    same = (maps[1] - maps[0]).abs().max() < 1e-5 * maps[0].abs().max()
    assert same == (method in saliency.ALGEBRA["pixel"])


def test_correlation_and_patch_map_by_hand(model):
    a = torch.tensor([[[1.0, 2], [3, 4]], [[1, 1], [1, 1]]])
    found = saliency.correlation(a, 5 - 2 * a)
    assert found[0].item() == pytest.approx(-1)
    assert found[1].isnan()
    checked = torch.zeros(1, 32, 32)
    checked[0, 16:, :16] = 1
    assert saliency.patch_map(model, checked).tolist() == [[0, 0, 256, 0]]


def test_correlation_table(model, images):
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    noise = PatchNullspace(model).sample(3, peak=0.1, generator=generator(0), dtype=torch.float64)
    target = random_images(model, 3, seed=9).double()
    exact = images + noise
    pictures = {"real-valued": exact, "8-bit": eight_bit(exact)}
    table = saliency.correlation_table(model, images, pictures, target)
    columns = ["method", "level", "picture", "pair"]
    rows = table.set_index(columns).sort_index()
    assert len(rows) == 6 * 2 * 2 * 2
    algebra = table[table.algebra]
    assert set(algebra.picture) == {"real-valued"}
    assert set(algebra.pair) == {"source-transformed"}
    assert algebra.level.value_counts().to_dict() == {"patch": 6, "pixel": 3}
    assert (algebra.value > 0.99999).all()
    rounded = rows.loc[[(r.method, r.level, "8-bit", r.pair) for r in algebra.itertuples()]]
    assert (rounded.value < algebra.value.min()).sum() > 5  # of 256 levels the tokens see something
    assert rows.value["CP-LRP", "pixel", "real-valued", "source-transformed"] < 0.9999
    assert table[table.pair == "target-transformed"].value.max() < 0.99
    assert (table.n <= 3).all()
    exact, made = saliency.estimates(table, picture="real-valued"), saliency.estimates(table)
    assert [e.value for e in exact.values()] == pytest.approx([1] * 6, abs=1e-4)
    assert {method: e.value for method, e in made.items()} == rounded.value.loc[:, "patch"].droplevel([1, 2]).to_dict()


def test_values_are_correlations_of_the_maps(model, images):
    """One method that the table must agree with, by hand."""
    pytest.importorskip("captum")
    other, target = (random_images(model, 3, seed=s).double() for s in (5, 9))
    table = saliency.correlation_table(model, images, {"8-bit": other}, target, methods=("input x gradient",))
    maps = [saliency.saliency_map(model, x, model(x).argmax(1), "input x gradient") for x in (images, target, other)]
    levelled = {"pixel": maps, "patch": [saliency.patch_map(model, m) for m in maps]}
    for row, (level, index) in zip(table.itertuples(), [(v, i) for v in levelled for i in (0, 1)], strict=True):
        found = saliency.correlation(levelled[level][index], levelled[level][2])
        assert row.level == level
        assert row.value == pytest.approx(found.mean().item())


def test_mistakes(model, images, monkeypatch):
    with pytest.raises(ValueError, match=r"method must be one of CP-LRP, gradient, .*got 'smoothgrad'"):
        saliency.saliency_map(model, images, LABELS, "smoothgrad")
    with pytest.raises(ValueError, match=r"pictures must be real-valued or 8-bit, got \['jpeg'\]: name them so"):
        saliency.correlation_table(model, images, {"jpeg": images}, images)
    with pytest.raises(ValueError, match=r"the maps of CP-LRP are flat on all 3 images.*leave it out of methods"):
        saliency.correlation_table(model, images * 0, {"8-bit": images}, images, methods=("CP-LRP",))
    with pytest.raises(ValueError, match="in training mode"):
        saliency.saliency_map(model.train(), images, LABELS, "gradient")

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    for method, module in (("gradient", r"captum\.attr"), ("Grad-CAM", "pytorch_grad_cam")):
        with pytest.raises(ModuleNotFoundError, match=rf"this needs {module}: pip install 'nslib\[xai\]'"):
            saliency.saliency_map(model.eval(), images, LABELS, method)
