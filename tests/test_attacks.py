"""Attacks: foolbox as oracle, budgets to the last bit, order of strength, and what each refuses."""

import logging
import sys
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import make_vit, random_images
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from nslib.attacks import auto, patchfool
from nslib.attacks.auto import auto_attack
from nslib.attacks.budget import project, random_point, seal
from nslib.attacks.carlini import carlini_wagner
from nslib.attacks.gradient import fgsm, pgd
from nslib.attacks.patchfool import _ascent, _attention_paid, choose_patches, patch_fool, patch_mask
from nslib.attacks.surrogate import SurrogateCNN
from nslib.attacks.transfer import _smooth, transfer_set
from nslib.data.shapes import render
from nslib.models import load_model
from nslib.runtime import generator, optional
from nslib.vit.attention_maps import attention_maps

EPS = 4 / 255


def quick_patch_fool(model, images, labels, **kwargs):
    return patch_fool(model, images, labels, **dict(generator=generator(3), layer=1, steps=3) | kwargs)


def bounded_patch_fool(model, images, labels, *, eps):
    return quick_patch_fool(model, images, labels, bound=eps)


def pgd_linf(model, images, labels, *, eps):
    return pgd(model, images, labels, eps=eps, step=EPS / 4, steps=3)


def pgd_linf_random(model, images, labels, *, eps):
    return pgd(model, images, labels, eps=eps, step=EPS / 4, steps=3, random_start=True, generator=generator(3))


def pgd_l2(model, images, labels, *, eps):
    return pgd(model, images, labels, eps=eps, step=0.3, steps=3, norm="l2", random_start=True, generator=generator(3))


def carlini(model, images, labels):
    return carlini_wagner(model, images, labels, searches=2, steps=5, start=10.0).images


LINF = [fgsm, pgd_linf, pgd_linf_random, transfer_set, bounded_patch_fool]
BUDGETED = [*LINF, pgd_l2, auto_attack]
ALL = [lambda m, x, y, a=a: a(m, x, y, eps=EPS) for a in BUDGETED] + [quick_patch_fool, carlini]
ALL_NAMES = [a.__name__ for a in BUDGETED] + ["quick_patch_fool", "carlini"]
over_budgeted = pytest.mark.parametrize("attack", BUDGETED, ids=lambda a: a.__name__)
over_all = pytest.mark.parametrize("attack", ALL, ids=ALL_NAMES)


@pytest.fixture
def images(vit) -> torch.Tensor:
    """Six, with pixels at 0 and 1 among them."""
    return (random_images(vit, 6) * 1.2 - 0.1).clamp(0, 1)


@pytest.fixture
def labels(vit, images) -> torch.Tensor:
    """What the model says, but for the last image, which it gets wrong."""
    with torch.no_grad():
        labels = vit(images).argmax(1)
    labels[-1] = (labels[-1] + 1) % 10
    return labels


@pytest.fixture(scope="module")
def shipped():
    return load_model()


@pytest.fixture(scope="module")
def shapes():
    """Sixty-four images of split val, labels."""
    return render("val", range(64))


@torch.no_grad()
def right(model, images, labels) -> torch.Tensor:
    return model(images).argmax(1) == labels


def accuracy(model, images, labels) -> float:
    return right(model, images, labels).float().mean().item()


def size(change: torch.Tensor, norm: str = "linf") -> float:
    """The largest norm of a batch of changes, to more digits than they were computed with."""
    flat = change.double().flatten(1)
    return (flat.abs().amax() if norm == "linf" else flat.norm(dim=1).amax()).item()


# Agreement with foolbox


FOOLBOX = {
    "fgsm": ("LinfFastGradientAttack", {}, EPS, lambda m, x, y: fgsm(m, x, y, eps=EPS)),
    "pgd": (
        "LinfPGD",
        dict(abs_stepsize=1 / 255, steps=6),
        EPS,
        lambda m, x, y: pgd(m, x, y, eps=EPS, step=1 / 255, steps=6),
    ),
    "pgd l2": (
        "L2PGD",
        dict(abs_stepsize=0.1, steps=6),
        0.4,
        lambda m, x, y: pgd(m, x, y, eps=0.4, step=0.1, steps=6, norm="l2"),
    ),
}


@pytest.mark.parametrize("case", FOOLBOX)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gradient_attacks_equal_foolbox(case, dtype, shapes):
    foolbox = optional("foolbox", "attacks")
    name, settings, eps, own = FOOLBOX[case]
    model = load_model().to(dtype)
    images, labels = shapes.images[:4].to(dtype), shapes.labels[:4]
    oracle = getattr(foolbox.attacks, name)(random_start=False, **settings)
    expected, _, _ = oracle(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), images, labels, epsilons=eps)
    found = own(model, images, labels)
    assert size(found - images) > eps / 2 / images[0].numel() ** 0.5
    assert size(found - expected) < 1e-6


def test_carlini_wagner_is_foolbox_at_these_settings(vit, images, labels):
    foolbox = optional("foolbox", "attacks")
    oracle = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=4, steps=20, initial_const=0.1, abort_early=False
    )
    bounded = foolbox.PyTorchModel(vit, bounds=(0, 1), device="cpu")
    expected, _, success = oracle(bounded, images[:5], labels[:5], epsilons=None)
    found = carlini_wagner(vit, images, labels, searches=4, steps=20, start=0.1)
    assert success.all()
    assert size(found.images[:5] - expected) < 1e-6
    assert not right(vit, found.images, labels).any()
    assert torch.allclose(found.norms, (found.images - images).flatten(1).norm(dim=1))


# Budgets


@over_budgeted
def test_budget_of_zero_changes_nothing(attack, vit, images, labels):
    assert torch.equal(attack(vit, images, labels, eps=0.0), images)


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3])
@pytest.mark.parametrize("attack", LINF, ids=lambda a: a.__name__)
def test_linf_budget_is_kept_to_the_last_bit(attack, eps, vit, images, labels):
    found = attack(vit, images, labels, eps=eps)
    assert 0 < size(found.double() - images.double()) <= eps
    assert found.amin() >= 0
    assert found.amax() <= 1


@pytest.mark.parametrize("eps", [0.05, 0.4, 3.0])
def test_l2_budget_is_kept_to_the_last_bit(eps, vit, images, labels):
    found = pgd_l2(vit, images, labels, eps=eps)
    assert 0.3 * min(eps, 0.3) < size(found.double() - images.double(), "l2") <= eps
    assert found.amin() >= 0
    assert found.amax() <= 1


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("l2", 0.7)])
def test_projection_keeps_what_is_inside_and_seal_leaves_room_for_rounding(norm, eps):
    images = torch.rand(50, 3, 16, 16, generator=generator(0)) * 0.8 + 0.1
    start = random_point(images, eps, norm, generator(1))
    assert torch.equal(random_point(images, eps, norm, generator(1)), start)
    assert 0.9 * eps < size(start - images, norm) < eps + 1e-6
    assert torch.allclose(project(start, images, eps, norm), start, atol=1e-6)
    far = images + 3 * (start - images)
    assert size(project(far, images, eps, norm) - images, norm) == pytest.approx(eps, abs=1e-6)
    assert eps - 2e-6 < size(seal(far, images, eps, norm).double() - images.double(), norm) <= eps


def test_random_points_fill_the_ball_evenly():
    """In n dimensions the share of the volume within half the radius is 2^-n; in one of linf it is a half."""
    images = torch.full((4000, 1, 1, 2), 0.5)
    norms = (random_point(images, 0.4, "l2", generator(2)) - images).flatten(1).norm(dim=1)
    assert (norms < 0.2).float().mean().item() == pytest.approx(0.25, abs=0.03)
    pixels = (random_point(images, 0.4, "linf", generator(2)) - images).abs()
    assert (pixels < 0.2).float().mean().item() == pytest.approx(0.5, abs=0.03)


# What every attack leaves as it was


@over_all
def test_outer_inference_mode_and_parameters_are_left_alone(attack, vit, images, labels):
    flags = [p.requires_grad for p in vit.parameters()]
    before = images.clone()
    fused = [block.attn.fused_attn for block in vit.vit.blocks]
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        found = attack(vit, images.clone(), labels.clone())
    assert found.shape == images.shape
    assert not found.requires_grad
    assert not found.is_inference()
    assert not torch.equal(found, before)
    assert torch.equal(images, before)
    assert all(p.grad is None for p in vit.parameters())
    assert [p.requires_grad for p in vit.parameters()] == flags
    assert [block.attn.fused_attn for block in vit.vit.blocks] == fused
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not vit.training


@over_all
def test_same_seed_same_images(attack, vit, images, labels):
    assert torch.equal(attack(vit, images, labels), attack(vit, images, labels))


def test_other_seeds_give_other_images(vit, images, labels):
    for attack in (pgd_linf_random, pgd_l2, quick_patch_fool):
        kwargs = {} if attack is quick_patch_fool else {"eps": EPS}
        first = attack(vit, images, labels, **kwargs)
        assert not torch.equal(first, pgd_linf(vit, images, labels, eps=EPS))
    other = quick_patch_fool(vit, images, labels, generator=generator(4))
    assert not torch.equal(quick_patch_fool(vit, images, labels), other)


def test_any_module_can_be_attacked():
    model = SurrogateCNN(10, 32).eval()
    images = torch.rand(3, 3, 32, 32, generator=generator(1))
    labels = torch.tensor([0, 1, 2])
    for attack in (fgsm, pgd_linf, pgd_l2, transfer_set):
        assert attack(model, images, labels, eps=EPS).shape == images.shape
    with pytest.raises(TypeError, match="expected a StagedViT, got SurrogateCNN"):
        quick_patch_fool(model, images, labels)


# Strength, on the model that ships


def test_gradient_attacks_beat_a_random_change_and_pgd_beats_fgsm(shipped, shapes):
    images, labels = shapes
    clean = accuracy(shipped, images, labels)
    signs = torch.rand(images.shape, generator=generator(5)) * 2 - 1
    noisy = accuracy(shipped, (images + EPS * signs.sign()).clamp(0, 1), labels)
    once = accuracy(shipped, fgsm(shipped, images, labels, eps=EPS), labels)
    often = accuracy(shipped, pgd(shipped, images, labels, eps=EPS, step=EPS / 4, steps=10), labels)
    assert often <= once < clean - 0.2
    assert clean - noisy < 0.25 * (clean - once)


def test_accuracy_falls_with_the_budget_to_nothing(shipped, shapes):
    images, labels = shapes.images[:32], shapes.labels[:32]
    budgets = (0.0, 1 / 255, 4 / 255, 16 / 255)
    found = [pgd(shipped, images, labels, eps=e, step=e / 4, steps=10) for e in budgets]
    scores = [accuracy(shipped, x, labels) for x in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.05


def test_pgd_in_l2_is_as_strong_against_a_surer_model(shipped, shapes):
    """Ten times the logits are the same decisions: gradients vanish, and their directions do not."""
    images, labels = shapes.images[:32], shapes.labels[:32]
    surer = deepcopy(shipped)
    with torch.no_grad():
        for p in surer.vit.head.parameters():
            p.mul_(10)
    tops = [
        accuracy(m, pgd(m, images, labels, eps=0.5, step=0.125, steps=10, norm="l2"), labels) for m in (shipped, surer)
    ]
    assert tops[1] <= tops[0] + 2 / 32


def test_carlini_wagner_needs_less_than_pgd_allows(shipped, shapes):
    images, labels = shapes.images[:8], shapes.labels[:8]
    nearest = carlini_wagner(shipped, images, labels, searches=6, steps=30, start=0.1)
    wrong = ~right(shipped, images, labels)
    assert (nearest.norms[wrong] == 0).all()
    assert torch.equal(nearest.images[wrong], images[wrong])
    assert not right(shipped, nearest.images, labels).any()
    eps = nearest.norms.max().item()
    by_pgd = pgd(shipped, images, labels, eps=eps / 2, step=eps / 10, steps=10, norm="l2")
    assert nearest.norms.median() < eps
    assert accuracy(shipped, by_pgd, labels) <= (nearest.norms > eps / 2).float().mean() + 0.5


def test_carlini_wagner_of_an_image_does_not_depend_on_its_batch(shipped, shapes):
    images, labels = shapes.images[:4], shapes.labels[:4]

    def norms(early_stop):
        search = partial(carlini_wagner, shipped, searches=2, steps=20, lr=0.3, start=10.0, early_stop=early_stop)
        together = search(images, labels).norms
        return together, torch.cat([search(images[i : i + 1], labels[i : i + 1]).norms for i in range(4)])

    together, apart = norms(early_stop=False)
    assert together.isfinite().all()
    assert torch.allclose(together, apart, rtol=1e-3)
    stopped, stopped_apart = norms(early_stop=True)  # at this rate the first steps raise the losses
    assert stopped.mean() > together.mean()
    assert not torch.allclose(stopped, stopped_apart, rtol=1e-3)


def test_carlini_wagner_returns_the_clean_image_where_it_finds_nothing(vit, images, labels):
    nearest = carlini_wagner(vit, images, labels, searches=1, steps=1)
    assert torch.equal(nearest.images, images)
    assert nearest.norms[:-1].isinf().all()
    assert nearest.norms[-1] == 0


def test_autoattack_beats_pgd(shipped, shapes):
    images, labels, eps = shapes.images[:4], shapes.labels[:4], EPS
    by_pgd = pgd(shipped, images, labels, eps=eps, step=eps / 4, steps=10)
    by_auto = auto_attack(shipped, images, labels, eps=eps)
    assert accuracy(shipped, by_auto, labels) <= accuracy(shipped, by_pgd, labels)
    assert size(by_auto.double() - images.double()) <= eps
    assert torch.equal(by_auto[right(shipped, by_auto, labels)], images[right(shipped, by_auto, labels)])


def test_autoattack_is_quiet_and_leaves_logging_and_tracing_alone(vit, images, labels, capsys, caplog):
    tracer, level = sys.gettrace(), logging.getLogger("auto-attack").level
    auto_attack(vit, images, labels, eps=0.1)
    assert capsys.readouterr() == ("", "")
    assert not caplog.records
    assert sys.gettrace() is tracer
    assert logging.getLogger("auto-attack").level == level


# Patch-Fool


@pytest.mark.parametrize("patches", [1, 2])
@pytest.mark.parametrize("bound", [None, 0.3])
def test_patch_fool_changes_the_chosen_patches_only_and_fools(patches, bound, shipped, shapes):
    images, labels = shapes.images[:24], shapes.labels[:24]
    clean = right(shipped, images, labels)
    found = patch_fool(shipped, images, labels, generator=generator(1), patches=patches, bound=bound, steps=15)
    mask = patch_mask(shipped, choose_patches(shipped, images, layer=4, patches=patches)).expand_as(images)
    assert mask.float().mean().item() == pytest.approx(patches / 16)
    assert torch.equal(found[~mask], images[~mask])
    assert torch.equal(found[~clean], images[~clean])
    assert (found - images)[clean].abs().amax((1, 2, 3)).min() > 0
    assert found.amin() >= 0
    assert found.amax() <= 1
    assert accuracy(shipped, found, labels) <= 0.25 * clean.float().mean()
    if bound:
        assert size(found.double() - images.double()) <= bound


def test_images_wrong_from_the_start_are_handed_back(vit, images, labels):
    wrong = (labels + 1) % 10
    wrong[-1] = (labels[-1] + 2) % 10
    assert not right(vit, images, wrong).any()
    assert torch.equal(quick_patch_fool(vit, images, wrong), images)
    assert torch.equal(carlini(vit, images, wrong), images)
    assert torch.equal(auto_attack(vit, images, wrong, eps=EPS), images)


def test_more_steps_never_fool_fewer(shipped, shapes):
    images, labels = shapes.images[:16], shapes.labels[:16]
    scores = [
        accuracy(shipped, patch_fool(shipped, images, labels, generator=generator(1), bound=0.1, steps=s), labels)
        for s in (1, 4, 12)
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < scores[0]


@pytest.mark.parametrize("bound", [None, 0.3])
def test_patch_fool_of_an_image_does_not_depend_on_its_batch(bound, vit, images, labels):
    def attacked(chosen):
        draws = [generator(i) for i in chosen]
        return quick_patch_fool(vit, images[chosen], labels[chosen], generator=draws, bound=bound, steps=1)

    together = attacked([0, 1, 2, 3, 4, 5])
    apart = torch.cat([attacked([0]), attacked([1, 2, 3]), attacked([4, 5])])
    assert torch.allclose(together, apart, atol=1e-5)
    by_one = quick_patch_fool(vit, images, labels, generator=generator(0), bound=bound, steps=1)
    assert torch.allclose(together[0], by_one[0], atol=1e-5)  # its first draws are the first image's
    assert not torch.allclose(together[1], by_one[1], atol=1e-2)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 3}, {"pre_norm": True}],
    ids=["class token", "no class token", "register tokens", "pre-norm"],
)
def test_chosen_patches_receive_most_attention(kwargs):
    model = make_vit(spread=0.1, **dict(patch_size=8) | kwargs)
    images = random_images(model, 3)
    with torch.no_grad(), attention_maps(model, [1]) as maps:
        model(images)
    chosen = choose_patches(model, images, layer=1, patches=2)
    for attention, patches in zip(maps[1], chosen, strict=True):
        heads, tokens, _ = attention.shape
        received = {
            k - (tokens - 16): sum(attention[h, q, k].item() for h in range(heads) for q in range(tokens))
            for k in range(tokens - 16, tokens)
        }
        assert sorted(received, key=received.get, reverse=True)[:2] == patches.tolist()


def test_mask_of_a_grid_that_is_not_square_and_has_a_rim():
    model = make_vit(img_size=(18, 11), patch_size=4)  # 4 x 2 patches
    mask = patch_mask(model, torch.tensor([[0, 7], [2, 5]]))
    expected = torch.zeros(2, 1, 18, 11, dtype=torch.bool)
    expected[0, 0, 0:4, 0:4] = expected[0, 0, 12:16, 4:8] = True
    expected[1, 0, 4:8, 0:4] = expected[1, 0, 8:12, 4:8] = True
    assert torch.equal(mask, expected)


def test_conflicting_gradients_are_projected(monkeypatch):
    """Gradients (1, 0) and (-3, 1): the second keeps (0, 1). With (3, 1) there is no conflict. The mask hides one."""
    points = torch.zeros(3, 1, 1, 2, requires_grad=True)
    x, y = points.flatten(1).unbind(1)
    loss = (x * torch.tensor([1.0, 1.0, 1.0])).sum()
    side = (x * torch.tensor([-3.0, 3.0, -3.0]) + y).sum()
    mask = torch.ones(3, 1, 1, 2)
    mask[2, ..., 1] = 0
    monkeypatch.setattr("nslib.attacks.patchfool._WEIGHT", 0.5)
    total = _ascent(loss, [side], points, mask).flatten(1)
    assert torch.equal(total, torch.tensor([[1.0, 0.5], [2.5, 0.5], [1.0, 0.0]]))


def test_attention_maps_are_those_of_the_model():
    model = make_vit(spread=0.1)
    images = random_images(model, 3)
    block = model.vit.blocks[1]
    seen = {}
    hook = block.attn.register_forward_pre_hook(lambda _, args: seen.update(tokens=args[0]))
    with torch.no_grad():
        clean = model(images)
        with attention_maps(model, [1]) as maps:
            logits = model(images)
    hook.remove()
    tokens = seen["tokens"]  # (3, 5, 48)
    q, k, _ = block.attn.qkv(tokens).reshape(3, 5, 3, 3, 16).permute(2, 0, 3, 1, 4)
    expected = (q @ k.transpose(2, 3) / 4).softmax(3)
    assert torch.allclose(maps[1], expected, atol=1e-6)
    assert torch.allclose(maps[1].sum(3), torch.ones(3, 3, 5))
    assert torch.allclose(logits, clean, atol=1e-5)


def test_attention_maps_restore_the_model_after_an_error(vit):
    with pytest.raises(ValueError, match=r"got \(1, 3, 5, 5\): resize first"), attention_maps(vit, [0, 1]):
        vit(torch.zeros(1, 3, 5, 5))
    assert all(block.attn.fused_attn and not block.attn.attn_drop._forward_hooks for block in vit.vit.blocks)


# Transfer


def test_transfer_with_momentum_by_hand():
    """Gradients of z1 - z0 = a - 2b at every point: the sign never turns, and ten steps of eps / 10 reach eps."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    images = torch.tensor([[0.5, 0.5], [0.99, 0.0]]).reshape(2, 1, 1, 2)
    found = transfer_set(model, images, torch.tensor([0, 1]), eps=0.1, smoothing=1)
    assert torch.allclose(found.flatten(1), torch.tensor([[0.6, 0.4], [0.89, 0.1]]), atol=1e-6)


def test_momentum_carries_past_a_turn():
    """The loss rises up to .53 and falls beyond: single gradients turn back there, three accumulated ones go on."""

    class Roof(nn.Module):
        def forward(self, images):
            x = images.flatten(1).sum(1)
            return torch.stack([torch.zeros_like(x), torch.where(x < 0.53, 10 * x, 5.3 - (x - 0.53))], 1)

    image, label = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    without = transfer_set(Roof().eval(), image, label, eps=0.06, steps=6, decay=0.0, smoothing=1)
    assert without.item() == pytest.approx(0.53, abs=0.011)
    carried = transfer_set(Roof().eval(), image, label, eps=0.06, steps=6, smoothing=1)
    assert carried.item() > without.item() + 0.015


def test_transfer_without_momentum_is_pgd(shipped, shapes):
    images, labels = shapes.images[:4].double(), shapes.labels[:4]
    model = load_model().double()
    own = transfer_set(model, images, labels, eps=EPS, steps=5, decay=0.0, smoothing=1)
    assert size(own - pgd(model, images, labels, eps=EPS, step=EPS / 5, steps=5)) < 1e-9


def test_transfer_does_not_depend_on_the_batch(vit, images, labels):
    model = vit.double()
    whole = transfer_set(model, images.double(), labels, eps=EPS)
    parts = zip(images.double().split(4), labels.split(4), strict=True)
    assert size(whole - torch.cat([transfer_set(model, x, y, eps=EPS) for x, y in parts])) < 1e-9


def test_gradients_are_smoothed_by_a_gaussian():
    """Side 5 has half 2 and variance 4/3: weights exp(-3/8 d^2), in each direction and channel on its own."""
    point = torch.zeros(1, 2, 9, 9)
    point[0, 1, 4, 4] = 1
    row = torch.exp(-3 / 8 * torch.tensor([4.0, 1.0, 0.0, 1.0, 4.0]))
    row = row / row.sum()
    expected = torch.zeros(1, 2, 9, 9)
    expected[0, 1, 2:7, 2:7] = row[:, None] * row
    assert torch.allclose(_smooth(point, 5), expected, atol=1e-7)
    assert torch.equal(_smooth(point, 1), point)


@pytest.mark.parametrize("side", [16, 48, 224])
def test_surrogate_is_small(side):
    model = SurrogateCNN(10, side).eval()
    assert model(torch.rand(2, 3, side, side)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) < 250_000
    assert sum(t.numel() * t.element_size() for t in model.state_dict().values()) < 1_000_000


def test_surrogate_normalises_inside():
    torch.manual_seed(0)
    model = SurrogateCNN(10, 32)
    dark = torch.rand(64, 3, 32, 32) * 0.1
    model(dark)  # in training mode
    assert model[0](dark).std().item() == pytest.approx(1, abs=0.05)
    assert model[0](dark).mean().item() == pytest.approx(0, abs=0.05)


# Errors


@pytest.mark.parametrize("eps", [8, -1 / 255, float("nan")])
@pytest.mark.parametrize("attack", [*LINF, auto_attack], ids=lambda a: a.__name__)
def test_budget_in_8_bit_levels_is_refused(attack, eps, vit, images, labels):
    with pytest.raises(ValueError, match=r"(eps|bound) must lie in \[0, 1\] in linf, got .*divide 8-bit levels by 255"):
        attack(vit, images, labels, eps=eps)


@pytest.mark.parametrize("eps", [-0.1, float("inf")])
def test_l2_budget_is_a_finite_length(eps, vit, images, labels):
    with pytest.raises(ValueError, match=r"eps must lie in \[0, inf\) in l2, got .*divide 8-bit levels by 255"):
        pgd_l2(vit, images, labels, eps=eps)


def test_step_in_8_bit_levels_is_refused(vit, images, labels):
    with pytest.raises(ValueError, match=r"step must lie in \[0, 1\] in linf, got 2: .*divide 8-bit levels by 255"):
        pgd(vit, images, labels, eps=EPS, step=2, steps=1)


@over_all
@pytest.mark.parametrize("wrong", [10, -1])
def test_labels_beyond_the_classes_are_refused(attack, wrong, vit, images, labels):
    labels[2] = wrong
    with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.9, .*got .*{wrong}"):
        attack(vit, images, labels)


@over_all
def test_labels_of_another_form_are_refused(attack, vit, images, labels):
    with pytest.raises(ValueError, match=r"labels must be \(6,\) int64, got \(5,\)"):
        attack(vit, images, labels[:5])
    with pytest.raises(ValueError, match=r"got \(6,\) torch.float32"):
        attack(vit, images, labels.float())


@over_all
def test_training_mode_is_refused(attack, vit, images, labels):
    with pytest.raises(ValueError, match=r"training mode: call model\.eval\(\) first"):
        attack(vit.train(), images, labels)


@over_all
@pytest.mark.parametrize("change", [lambda x: x * 255, lambda x: x - 0.5, lambda x: x * float("nan")])
def test_images_outside_the_range_are_refused(attack, change, vit, images, labels):
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got "):
        attack(vit, change(images), labels)


def test_images_outside_the_range_are_refused_for_any_module(labels):
    images = torch.full((6, 3, 32, 32), 2.0)
    with pytest.raises(ValueError, match=r"\[0, 1\], got \[2, 2\]: put the normalisation inside the model"):
        fgsm(SurrogateCNN(10, 32).eval(), images, labels, eps=EPS)


@over_all
def test_nan_logits_are_told(attack, vit, images, labels):
    with torch.no_grad():
        vit.vit.head.bias[3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"gives NaN logits for \d of \d images"):
        attack(vit, images, labels)


def test_no_images_are_refused(vit, images, labels):
    with pytest.raises(ValueError, match="no images"):
        fgsm(vit, images[:0], labels[:0], eps=EPS)


def test_settings_out_of_range_are_refused(vit, images, labels):
    with pytest.raises(ValueError, match="norm must be one of linf, l2, got 'l1'"):
        pgd(vit, images, labels, eps=EPS, step=EPS, steps=1, norm="l1")
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        pgd(vit, images, labels, eps=EPS, step=EPS, steps=0)
    with pytest.raises(ValueError, match="random_start needs a generator"):
        pgd(vit, images, labels, eps=EPS, step=EPS, steps=1, random_start=True)
    with pytest.raises(ValueError, match="steps must be >= 1 and decay >= 0, got 0 and"):
        transfer_set(vit, images, labels, eps=EPS, steps=0)
    with pytest.raises(ValueError, match="smoothing must be an odd number of pixels, 1 for none, got 4"):
        transfer_set(vit, images, labels, eps=EPS, smoothing=4)
    with pytest.raises(ValueError, match="searches and steps must be >= 1, got 0 and"):
        carlini_wagner(vit, images, labels, searches=0)
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        quick_patch_fool(vit, images, labels, steps=0)
    with pytest.raises(ValueError, match=r"patches must lie in 1\.\.4, the grid of .*, got 5"):
        quick_patch_fool(vit, images, labels, patches=5)
    with pytest.raises(ValueError, match=r"block must lie in 0\.\.1 for .*, got 4"):
        quick_patch_fool(vit, images, labels, layer=4)
    with pytest.raises(ValueError, match="generator must be one, or one for each of 6 images, got 2"):
        quick_patch_fool(vit, images, labels, generator=[generator(0), generator(1)])
    with pytest.raises(ValueError, match="size must be at least 16 px, got 8"):
        SurrogateCNN(10, 8)


def test_autoattack_needs_four_classes():
    model = make_vit(num_classes=3)
    with pytest.raises(ValueError, match="AutoAttack needs 4 classes, got a model of 3"):
        auto_attack(model, random_images(model, 2), torch.tensor([0, 1]), eps=EPS)


@pytest.mark.parametrize("kwargs", [{}, dict(pos_embed="none")])
def test_patch_fool_where_no_image_is_right(kwargs):
    """timm reshapes no batch of no images in a model without position embedding."""
    model = make_vit(**kwargs)
    images = random_images(model, 2)
    with torch.no_grad():
        wrong = model(images).argmin(1)
    assert torch.equal(quick_patch_fool(model, images, wrong), images)


def test_attention_of_another_kind_is_refused():
    model = make_vit(block_fn=ParallelScalingBlock)
    with pytest.raises(TypeError, match="has ParallelScalingBlock: expected timm's standard Attention"):
        choose_patches(model, random_images(model, 1), layer=0, patches=1)


def test_missing_library_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"needs no_such_library: pip install 'nslib\[attacks\]'"):
        optional("no_such_library", "attacks")


def test_patch_fool_searches_as_published(monkeypatch):
    """Adam in stds of a pixel, 5 % less every 10 steps; attention of blocks 1 up to half the depth."""
    model = make_vit(depth=6)
    images = random_images(model, 2)
    labels = model(images).argmax(1).detach()
    rates, blocks, step, maps = [], [], torch.optim.Adam.step, patchfool.attention_maps

    def noted(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    def read(model, layers):
        blocks.append(list(layers))
        return maps(model, layers)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    monkeypatch.setattr(patchfool, "attention_maps", read)
    patch_fool(model, images, labels, generator=generator(0), bound=1e-6, steps=12, lr=0.2)
    assert rates == pytest.approx([0.2 * model.std.mean().item()] * 10 + [0.19 * model.std.mean().item()] * 2)
    assert blocks == [[4], [1, 2]]


def test_attention_paid_by_hand(vit):
    """The mean over queries of the log of what the heads together pay to the chosen patches."""
    attention = torch.rand(2, 3, 5, 5, generator=generator(0)).softmax(-1)
    chosen = torch.tensor([[0, 2], [3, 1]])
    by_hand = [a.mean(0)[:, 1 + c].sum(1).log().mean().item() for a, c in zip(attention, chosen, strict=True)]
    assert _attention_paid(attention, chosen, vit).item() == pytest.approx(sum(by_hand))


def test_autoattack_aims_at_the_other_classes_up_to_nine(monkeypatch):
    made = []

    class Library:
        def __init__(self, *args, **kwargs):
            self.apgd_targeted, self.fab = SimpleNamespace(), SimpleNamespace()
            made.append(self)

        def run_standard_evaluation(self, images, labels, batch_size):
            return images, labels

    monkeypatch.setattr(auto, "optional", lambda *_: SimpleNamespace(AutoAttack=Library))
    for classes in (12, 10, 6):
        model = make_vit(num_classes=classes)
        auto_attack(model, random_images(model, 2), torch.tensor([0, 1]), eps=0.1)
    assert [(m.apgd_targeted.n_target_classes, m.fab.n_target_classes) for m in made] == [(9, 9), (9, 9), (5, 5)]
