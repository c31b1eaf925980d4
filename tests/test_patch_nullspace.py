"""The linear nullspace: algebra, scipy, and what the model itself makes of it."""

import pytest
import scipy.linalg
import torch
from conftest import SMALL, make_vit, random_images, real_folder
from safetensors.torch import save_file
from timm.models import VisionTransformer

from nslib.data.folders import FolderImages
from nslib.models import load_model
from nslib.nullspace.patch import PatchNullspace
from nslib.runtime import generator
from nslib.vit.staged import StagedViT

UNEQUAL = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.7))


def tiny(*, embed_dim=16, patch_size=4, img_size=16, mean=(0.5,) * 3, std=(0.5,) * 3) -> StagedViT:
    """3 * 4 * 4 = 48 pixels -> 16 numbers: a nullspace of 32 dimensions."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=img_size, patch_size=patch_size, embed_dim=embed_dim, depth=1, num_heads=2, num_classes=5
    )
    return StagedViT(vit.eval(), mean=mean, std=std, name="tiny")


def with_rank(model: StagedViT, rank: int) -> StagedViT:
    """The patch embedding's weight becomes a product of two Gaussian factors."""
    weight = model.vit.patch_embed.proj.weight
    draws = generator(5)
    left = torch.randn(weight.shape[0], rank, generator=draws, dtype=torch.float64)
    right = torch.randn(rank, weight[0].numel(), generator=draws, dtype=torch.float64)
    weight.data = (left @ right).reshape(weight.shape).to(weight.dtype)
    return model


CASES = {
    "plain": lambda: tiny(),
    "unequal stds": lambda: tiny(**UNEQUAL),
    "rank-deficient": lambda: with_rank(tiny(**UNEQUAL), 5),
    "more numbers than pixels": lambda: with_rank(tiny(embed_dim=64), 40),
}


@pytest.fixture(params=CASES)
def model(request) -> StagedViT:
    return CASES[request.param]()


def test_basis_is_orthonormal_and_maps_to_zero(model):
    null = PatchNullspace(model)
    basis = null.basis
    assert basis.shape == (48, null.dim)
    assert basis.dtype == torch.float64
    assert (basis.T @ basis - torch.eye(null.dim, dtype=torch.float64)).abs().max() < 1e-12
    assert (null.matrix @ basis).abs().max() <= null.tol


def test_rank_and_nullity_add_up(model):
    null = PatchNullspace(model)
    assert null.rank + null.dim == 48
    assert null.rank == torch.linalg.matrix_rank(model.vit.patch_embed.proj.weight.flatten(1)).item()


def test_scipy_finds_the_same_space(model):
    null = PatchNullspace(model)
    other = scipy.linalg.null_space(null.matrix.numpy(), rcond=null.tol / null.singular_values[0].item())
    assert other.shape == null.basis.shape
    assert scipy.linalg.subspace_angles(null.basis.numpy(), other).max() < 1e-6


def test_what_is_seen_completes_the_basis(model):
    null = PatchNullspace(model)
    assert null.seen.shape == (null.rank, 48)
    whole = torch.cat([null.seen, null.basis.T])
    assert torch.allclose(whole @ whole.T, torch.eye(48, dtype=torch.float64), atol=1e-9)


def test_dimensions_made_for_the_test():
    assert PatchNullspace(tiny()).dim == 48 - 16
    assert PatchNullspace(with_rank(tiny(), 5)).dim == 48 - 5
    assert PatchNullspace(tiny(embed_dim=64)).dim == 0


def test_matrix_is_the_embedding_of_pixels():
    """W diag(1/std), with pixels in the order of the convolution: channel, row, column."""
    model = tiny(img_size=4, **UNEQUAL).double()
    null = PatchNullspace(model)
    images = torch.rand(6, 3, 4, 4, dtype=torch.float64)
    black = model.embed(torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    linear = images.flatten(1) @ null.matrix.T
    assert torch.allclose(model.embed(images)[:, 0] - black[:, 0], linear, atol=1e-12)


def test_singular_values_are_those_of_the_matrix(model):
    null = PatchNullspace(model)
    assert torch.allclose(null.singular_values, torch.from_numpy(scipy.linalg.svdvals(null.matrix.numpy())))


@pytest.mark.parametrize("img_size", [16, 18, (18, 11)], ids=["whole patches", "a rim", "not square"])
def test_noise_from_the_nullspace_changes_no_token(model, img_size):
    model.vit.patch_embed.set_input_size(img_size=img_size)
    null = PatchNullspace(model)
    exact = model.double()
    noise = null.sample(3, peak=0.5, generator=generator(1), dtype=torch.float64)
    assert noise.shape == (3, *model.image_shape)
    images = random_images(model, 3).double()
    clean = exact.embed(images)
    assert (exact.embed(images + noise) - clean).abs().max() < 1e-6 * clean.abs().max()  # weights stored in float32
    other = torch.randn(noise.shape, generator=generator(2), dtype=torch.float64)
    other *= noise.norm() / other.norm()
    assert (exact.embed(images + other) - clean).abs().max() > 1e-2 * clean.abs().max()


def test_noise_outside_of_whole_patches_is_zero():
    noise = PatchNullspace(tiny(img_size=18)).sample(2, norm=1.0, generator=generator(0))
    assert noise[..., 16:, :].abs().max() == 0
    assert noise[..., 16:].abs().max() == 0
    assert (noise[..., :16, :16] != 0).float().mean() > 0.99


def test_sample_has_the_norm_or_the_peak_asked_for():
    null = PatchNullspace(tiny(**UNEQUAL))
    norms = null.sample(5, norm=7.0, generator=generator(0)).flatten(1).norm(dim=1)
    peaks = null.sample(5, peak=0.3, generator=generator(0)).flatten(1).abs().amax(1)
    assert torch.allclose(norms, torch.full((5,), 7.0), rtol=1e-5)
    assert torch.allclose(peaks, torch.full((5,), 0.3), rtol=1e-5)
    assert null.sample(1, norm=1.0).dtype == torch.float32
    assert not null.sample(1, peak=0.0).any()
    assert not null.sample(1, norm=0.0).any()


def test_sample_repeats_with_its_generator_and_reaches_every_dimension():
    null = PatchNullspace(tiny())
    a, b, c = (null.sample(20, norm=1.0, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    patches = torch.nn.functional.unfold(a.double(), 4, stride=4).transpose(1, 2).reshape(-1, 48)
    assert torch.linalg.matrix_rank(patches, rtol=1e-4) == null.dim


@pytest.mark.parametrize("img_size", [16, 18], ids=["whole patches", "a rim"])
def test_projections_add_up_and_are_projections(model, img_size):
    model.vit.patch_embed.set_input_size(img_size=img_size)
    null = PatchNullspace(model)
    images = random_images(model, 3).double()
    inside, outside = null.project(images)
    assert torch.allclose(inside + outside, images, atol=1e-14)
    again, nothing = null.project(inside)
    assert torch.allclose(again, inside, atol=1e-12)
    assert nothing.abs().max() < 1e-12
    nothing, again = null.project(outside)
    assert torch.allclose(again, outside, atol=1e-12)
    assert nothing.abs().max() < 1e-12
    assert ((inside * outside).flatten(1).sum(1)).abs().max() < 1e-11  # orthogonal in pixels
    assert inside.norm() > 0.1
    assert outside.norm() > 0.1


def test_tokens_see_the_complement_only(model):
    null = PatchNullspace(model)
    exact = model.double()
    images = random_images(model, 3).double()
    inside, outside = null.project(images)
    black = exact.embed(torch.zeros_like(images))
    scale = exact.embed(images).abs().max()
    assert (exact.embed(outside) - exact.embed(images)).abs().max() < 1e-6 * scale
    assert (exact.embed(inside) - black).abs().max() < 1e-6 * scale


def test_projection_keeps_the_type():
    inside, outside = PatchNullspace(tiny()).project(torch.rand(1, 3, 16, 16))
    assert inside.dtype == outside.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_default_tolerance_follows_the_precision_of_the_weights(dtype):
    """Rounding to the stored type adds singular values of about its epsilon; the default sees through them."""
    model = with_rank(tiny(embed_dim=40), 5).double()
    assert PatchNullspace(with_rank(model, 5)).dim == 43
    null = PatchNullspace(model.to(dtype))
    eps, size = torch.finfo(dtype).eps, null.singular_values
    if dtype in (torch.float64, torch.float32):  # as numpy's
        assert null.tol == pytest.approx(size[0].item() * 48 * eps)
    else:
        assert null.tol == pytest.approx(size.norm().item() * eps * (40**-0.5 + 48**-0.5))
    assert size[5] < null.tol < size[4] / 4
    assert null.dim == 43
    if dtype != torch.float64:
        assert PatchNullspace(model, tol=1e-12).dim == 8  # full rank to the eye of float64


def test_tolerance_given_by_hand():
    model = tiny()
    values = PatchNullspace(model).singular_values
    assert PatchNullspace(model, tol=values[10].item()).rank == 10  # up to tol counts as zero
    assert PatchNullspace(model, tol=0.0).rank == 16
    with pytest.raises(ValueError, match=r"tol must be >= 0, got -0\.1"):
        PatchNullspace(model, tol=-0.1)


def test_trivial_nullspace():
    null = PatchNullspace(tiny(embed_dim=64))
    for refuse in (null.check_not_trivial, lambda: null.sample(1, norm=1.0)):
        with pytest.raises(ValueError, match=r"48 -> 64, has the trivial .* C\*P\*P larger .*, such as shapes_vit"):
            refuse()
    PatchNullspace(tiny()).check_not_trivial()
    images = torch.rand(2, 3, 16, 16)
    inside, outside = null.project(images)
    assert not inside.any()
    assert torch.equal(outside, images)


@pytest.mark.parametrize("size", [{}, dict(norm=1.0, peak=1.0)], ids=["neither", "both"])
def test_norm_or_peak(size):
    with pytest.raises(ValueError, match="give exactly one of norm and peak"):
        PatchNullspace(tiny()).sample(1, **size)


def test_small_vit_of_the_fixtures_has_the_dimension_of_its_shape():
    assert PatchNullspace(make_vit()).dim == 3 * 16 * 16 - 48


@pytest.mark.real
def test_pretrained_vit_tiny_has_576_dimensions_that_it_does_not_see():
    model = load_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", real_folder("NSLIB_WEIGHTS"))
    null = PatchNullspace(model)
    assert null.dim == 576
    assert null.singular_values[-1].item() == pytest.approx(0.036 / 0.5, abs=0.001)  # in pixels, so over std
    images, _ = FolderImages(real_folder("NSLIB_IMAGENET"), "val", model).load(range(8))
    noise = null.sample(8, peak=0.5, generator=generator(0))
    with torch.inference_mode():
        clean = model(images)
        assert (model(images + noise) - clean).abs().max() < 1e-3
        outside = null.project(torch.randn(images.shape, generator=generator(1)))[1]
        assert (model(images + outside * (noise.norm() / outside.norm())) - clean).abs().max() > 1


def test_default_tolerance_follows_the_type_in_the_file(tmp_path):
    """A model loaded from short weights computes in float32, but its singular values are known to their type only."""
    exact = PatchNullspace(load_model())
    for dtype in (torch.float16, torch.bfloat16):
        short = {k: v.to(dtype) for k, v in load_model().vit.state_dict().items()}
        save_file(short, tmp_path / "shapes_vit.safetensors")
        null = PatchNullspace(load_model(weights=tmp_path))
        assert null.matrix.dtype == torch.float64
        assert null.tol > exact.tol
        assert (
            (null.dim, null.rank) == (exact.dim, exact.rank) == (304, 128)
        )  # all that the trained weights see is kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_type_in_a_file_of_the_hub(tmp_path, dtype):
    """timm converts what it has fetched, for which a file here stands; that of the file shows in the numbers."""
    tag = "vit_tiny_patch16_224"
    state = {k: v.to(dtype) for k, v in make_vit(tag).vit.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    overlay = dict(file=str(tmp_path / "w.safetensors"), num_classes=10)
    fetched = load_model(tag, "pretrained", pretrained_cfg_overlay=overlay, **SMALL)
    assert torch.equal(fetched.vit.patch_embed.proj.weight, state["patch_embed.proj.weight"].float())
    assert fetched.stored_dtype == dtype
    assert PatchNullspace(fetched).tol == PatchNullspace(load_model(tag, tmp_path / "w.safetensors", **SMALL)).tol


def test_no_samples_are_a_mistake(vit):
    with pytest.raises(ValueError, match="n must be >= 1, got -1"):
        PatchNullspace(vit).sample(-1, peak=0.5)


def test_sample_is_gaussian_in_the_nullspace():
    """No direction and no sign of it is preferred, patch by patch."""
    null = PatchNullspace(tiny(**UNEQUAL))
    noise = null.sample(200, norm=1.0, generator=generator(0), dtype=torch.float64)
    coefficients = null.unfold(noise) @ null.basis  # (200, 16, 32)
    scaled = (coefficients * coefficients[0].numel() ** 0.5).flatten(0, 1)
    assert scaled.mean(0).abs().max() < 0.1
    assert (scaled.std(0) - 1).abs().max() < 0.1
    assert scaled.pow(4).mean().item() == pytest.approx(3, rel=0.05)  # of uniform ones 1.8
