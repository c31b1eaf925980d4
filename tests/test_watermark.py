"""Eq. (12) against other solvers, legal pictures, files in and out, and the photographs."""

import socket
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import random_images, real_folder
from PIL import Image
from scipy.optimize import minimize
from test_patch_nullspace import tiny

from nslib import runtime
from nslib.analysis import photographs, pictures, watermark
from nslib.data.folders import FolderImages
from nslib.models import load_model
from nslib.nullspace.patch import PatchNullspace
from nslib.runtime import generator

UNEQUAL = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.7))


@pytest.fixture
def model():
    """3 * 4 * 4 = 48 pixels -> 16 numbers, 4 x 4 patches, unequal stds."""
    return tiny(**UNEQUAL)


@pytest.fixture
def null(model):
    return PatchNullspace(model)


@pytest.fixture
def pair(model):
    return random_images(model, 2, seed=1).double(), random_images(model, 2, seed=2).double()


def embed(model, images):
    return model.double().embed(images)


# Eq. (12)


def test_closed_form_is_least_squares_in_every_patch(null, pair):
    source, target = pair
    found = watermark.nearest(null, source, target)
    for row, column in ((0, 0), (4, 8), (12, 12)):
        cut = (1, slice(None), slice(row, row + 4), slice(column, column + 4))
        goal = (target - source)[cut].flatten()
        weights = torch.linalg.lstsq(null.basis, goal.unsqueeze(1)).solution[:, 0]
        assert torch.allclose((found - source)[cut].flatten(), null.basis @ weights, atol=1e-10)


def test_closed_form_keeps_the_tokens(model, null, pair):
    source, target = pair
    found = watermark.nearest(null, source, target)
    assert (embed(model, found) - embed(model, source)).abs().max() < 1e-12
    assert (found - target).norm() < 0.9 * (source - target).norm()


def test_legal_solution_is_the_optimum(null, pair):
    """Against scipy's SLSQP, on the pixels of one patch."""
    source, target = pair
    found = watermark.nearest_legal(null, source, target, steps=5000, tol=1e-9)
    assert found.min() == 0  # the bounds are felt
    assert found.max() == 1
    cut = (0, slice(None), slice(4, 8), slice(0, 4))
    own, goal = (images[cut].flatten().numpy() for images in pair)
    matrix = null.matrix.numpy()
    other = minimize(
        lambda x: ((x - goal) ** 2).sum() / 2,
        own,
        jac=lambda x: x - goal,
        bounds=[(0, 1)] * 48,
        constraints={"type": "eq", "fun": lambda x: matrix @ (x - own), "jac": lambda x: matrix},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert other.success
    assert np.abs(found[cut].flatten().numpy() - other.x).max() < 1e-5


def test_legal_solution_keeps_the_tokens_within_its_tolerance(model, null, pair):
    source, target = pair
    for tol in (1e-2, 1e-4, 1e-7):
        found = watermark.nearest_legal(null, source, target, steps=5000, tol=tol)
        seen = null.project(found - source)[1]  # its coordinates are at most tol in each of 16 directions
        patches = torch.nn.functional.unfold(seen, 4, stride=4)
        assert patches.norm(dim=1).max() <= tol * 16**0.5
        assert 0 <= found.min() <= found.max() <= 1


def test_patches_that_are_not_done_are_told(null, pair):
    """How many, and how far off the worst is: both measured anew."""
    source, target = pair
    with pytest.warns(UserWarning, match="of 32 patches are not done after 3 steps: what the model sees") as told:
        found = watermark.nearest_legal(null, source, target, steps=3, tol=1e-6)
    off = ((null.unfold(found) - null.unfold(source)) @ null.seen.T).abs().amax(2)
    message = str(told[0].message)
    assert message.startswith(f"{(off >= 1e-6).sum()} of 32")
    assert f"off by {off.max():.2g} of the pixel range, allowed are 1e-06: raise steps" in message


def test_images_are_solved_in_parts(null, pair, monkeypatch):
    """A patch keeps what it was at when it was done, whichever images are beside its own."""

    def solve():
        legal = watermark.nearest_legal(null, *pair, tol=1e-4)
        return legal, watermark.round_unseen(null, pair[0]), watermark.nearest(null, *pair)

    whole = solve()
    monkeypatch.setattr(watermark, "_PART", 1)
    parts = solve()
    assert torch.allclose(whole[0], parts[0], atol=1e-12)
    assert torch.equal(whole[1], parts[1])
    assert torch.allclose(whole[2], parts[2], atol=1e-12)


def test_where_nothing_leaves_the_range_both_agree(null, pair):
    source, target = (0.45 + images * 0.1 for images in pair)
    both = watermark.nearest(null, source, target), watermark.nearest_legal(null, source, target, tol=1e-8)
    assert torch.allclose(*both, atol=1e-6)


def test_a_black_source_stays_legal(model, null, pair):
    _, target = pair
    black = torch.zeros_like(target)
    found = watermark.nearest_legal(null, black, target)
    assert found.min() >= 0
    assert null.project(found)[1].abs().max() < 0.01


def test_the_target_itself_is_reached_where_it_differs_by_nullspace_noise(null, pair):
    source = 0.4 + pair[0] * 0.2
    target = source + null.sample(2, peak=0.3, dtype=torch.float64)
    assert torch.allclose(watermark.nearest_legal(null, source, target, tol=1e-8), target, atol=1e-6)


def test_pixels_beyond_the_last_patch_become_the_targets():
    null = PatchNullspace(tiny(img_size=18))
    source, target = torch.rand(1, 3, 18, 18), torch.rand(1, 3, 18, 18)
    found = watermark.nearest_legal(null, source, target)
    assert torch.equal(found[..., 16:, :], target[..., 16:, :])
    assert torch.equal(found[..., :, 16:], target[..., :, 16:])
    assert not torch.equal(found[..., :16, :16], target[..., :16, :16])


def test_disguise_is_in_256_levels_and_strength_is_felt(model, null, pair):
    source, target = (pictures.eight_bit(images.float()) for images in pair)
    strong, weak = (watermark.disguise(null, source, target, strength=s) for s in (1.0, 0.3))
    levels = strong * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert (strong - target).norm() < (weak - target).norm() < (source - target).norm()
    assert torch.equal(watermark.disguise(null, source, target, strength=0), source)


def test_rounding_is_hidden_from_the_embedding(model, null, pair):
    """Levels all of them, within a few of the nearest, and far less of it is seen than of plain rounding."""
    images = pair[0]
    found = watermark.round_unseen(null, images)
    assert torch.allclose(found * 255, (found * 255).round(), atol=1e-9)
    assert 0 <= found.min() <= found.max() <= 1
    assert (found - images).abs().max() < 6 / 255
    plain = (embed(model, pictures.eight_bit(images)) - embed(model, images)).norm()
    assert (embed(model, found) - embed(model, images)).norm() < 0.3 * plain
    assert torch.equal(watermark.round_unseen(null, pictures.eight_bit(images)), pictures.eight_bit(images))


def test_strengths(model, null, pair):
    source, target = (pictures.eight_bit(images.float()) for images in pair)
    table = watermark.strength_table(model.float(), null, source, target, [0, 1], generator=generator(0)).set_index(
        ["strength", "way"]
    )
    assert len(table) == 2 * 6
    assert table.logits[0].drop("JPEG 95").max() == 0
    assert table.logits[1, "nullspace"] < table.logits[1, "nearest level"] < table.logits[1, "blend"]
    assert table.psnr[1, "blend"] == pytest.approx(100, abs=1e-3)  # it is the aim
    assert table.psnr[1, "nullspace"] < table.psnr[1, "clipped"] + 1
    assert table.value[1, "nullspace"] == 1
    assert (table.n == 2).all()


def test_effect_by_hand(model):
    with torch.no_grad():
        model.vit.head.weight.zero_()
        model.vit.head.bias.copy_(torch.tensor([0, 0, 3.0, 0, 0]))
    black, grey = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.1)
    (row,) = watermark.effect_table(model, black, grey, black).to_dict("records")
    assert (row["class_before"], row["class_after"], row["match"]) == (2, 2, True)
    confidence = np.exp(3) / (np.exp(3) + 4)
    assert row["confidence_before"] == row["confidence_after"] == pytest.approx(confidence)
    assert row["logits"] == 0
    assert row["pixels"] == pytest.approx(0.1)
    assert row["psnr"] == pytest.approx(20, abs=1e-4)
    assert row["psnr_before"] == pytest.approx(100)
    assert row["psnr_source"] == row["psnr"]


def test_the_control_has_the_same_change_in_another_order(model, null, pair):
    source, target = (0.4 + part / part.max() / 5 for part in pair)  # far from 0 and 1: nothing is clipped
    result = watermark.nearest(null, source, target).clamp(0, 1)
    control = watermark.permuted_change(null, source, result, generator=generator(0))
    assert torch.equal(pictures.eight_bit(control), control)
    own, other = (null.unfold(x - source).flatten(0, 1) for x in (result, control))
    order = torch.randperm(own.shape[1], generator=generator(0))
    assert torch.allclose(own[:, order], other, atol=0.501 / 255)
    seen = [(embed(model, x) - embed(model, source)).norm() for x in (result, control)]
    assert seen[1] > 10 * seen[0]


def test_the_control_leaves_pixels_beyond_the_last_patch(pair):
    wide = tiny(img_size=18)
    null = PatchNullspace(wide)
    source = torch.full((1, 3, 18, 18), 0.5)
    control = watermark.permuted_change(null, source, source + 0.1, generator=generator(0))
    assert torch.equal(control[..., 16:, :], pictures.eight_bit(source)[..., 16:, :])
    assert torch.equal(control[..., 16:], pictures.eight_bit(source)[..., 16:])
    assert (control[..., :16, :16] > 0.58).all()


def test_mistakes(model, null, pair):
    source, target = pair
    blind = PatchNullspace(tiny(embed_dim=64))
    for solve in (watermark.nearest, watermark.nearest_legal):
        with pytest.raises(ValueError, match=r"48 -> 64, has the trivial nullspace only: take a model .* such as"):
            solve(blind, source, target)
        with pytest.raises(ValueError, match=r"must have the same size, got \(2, 3, 16, 16\) and \(2, 3, 8, 8\)"):
            solve(null, source, target[..., :8, :8])
        with pytest.raises(ValueError, match=r"images must be \(B, 3, 16, 16\), got \(2, 3, 8, 8\): resize to 16 x 16"):
            solve(null, source[..., :8, :8], target[..., :8, :8])
    with pytest.raises(ValueError, match=r"source must lie in \[0, 1\], got \[.*, 2\]"):
        watermark.nearest_legal(null, source / source.max() * 2, target)
    with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\], got 1.5"):
        watermark.blend(source, target, 1.5)


# Files


def save(path, mode, size=(16, 16), **kwargs):
    Image.new(mode, size).save(path, **kwargs)
    return path


def png_by_hand(path, width, height, bits):
    """An RGB file of 2 x 1 pixels of 16 bits, whatever its header says: PIL writes none such."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    body = zlib.compress(b"\0" + bytes(12))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


def test_every_level_survives_a_file(tmp_path):
    image = (torch.arange(768) % 256 / 255).reshape(3, 16, 16)
    saved = pictures.read_picture(pictures.write_picture(tmp_path / "a.png", image))
    assert torch.equal(saved, image)
    assert torch.equal(pictures.eight_bit(image + 0.4 / 255).clamp(max=1)[0], image[0])
    assert 0 < (pictures.as_jpeg(image) - image).abs().max() < 0.5


def sixteen_bit_tiff(path):
    """One strip, little-endian: PIL reads this RGB file as 8-bit without a word."""
    tags = [(256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 140),
            (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 12), (284, 3, 1, 1)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    path.write_bytes(head + struct.pack("<3H", 16, 16, 16) + struct.pack("<6H", *range(0, 60000, 10000)))
    return path


def sixteen_bit_ppm(path):
    path.write_bytes(b"P6 # by hand\n2 1\n65535\n" + bytes(12))
    return path


def black_and_white_pbm(path):
    path.write_bytes(b"P4\n8 2\n" + bytes(2))
    return path


def float_tiff(path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(path, format="TIFF")
    return path


def float_pfm(path):
    path.write_bytes(b"Pf\n2 2\n-1.0\n" + bytes(16))
    return path


@pytest.mark.parametrize("kind", ["TIFF", "PPM"])
def test_eight_bits_in_formats_that_may_have_more(tmp_path, kind):
    image = pictures.eight_bit(torch.rand(3, 4, 5, generator=generator(0)))
    Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(tmp_path / "a", format=kind)
    assert torch.equal(pictures.read_picture(tmp_path / "a"), image)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda p: save(p, "RGBA"), "an alpha channel, expected RGB: flatten it"),
        (lambda p: save(p, "LA"), "greyscale with an alpha channel"),
        (lambda p: save(p, "L"), "greyscale, expected RGB"),
        (lambda p: save(p, "P"), "a palette, expected RGB"),
        (lambda p: save(p, "I;16"), "16 bits a channel, expected 8"),
        (lambda p: save(p, "RGB", transparency=(0, 0, 0)), "a transparent colour, expected RGB"),
        (lambda p: png_by_hand(p, 2, 1, bits=16), "16 bits a channel, expected 8"),
        (sixteen_bit_tiff, "16 bits a channel, expected 8"),
        (sixteen_bit_ppm, "16 bits a channel, expected 8"),
        (black_and_white_pbm, "black and white, expected RGB: flatten it"),
        (float_tiff, "32 bits a channel, expected 8"),
        (float_pfm, "32 bits a channel, expected 8: save it as 8-bit RGB"),
        (lambda p: png_by_hand(p, 40000, 40000, bits=8), r"too large \(.*1600000000 pixels.*\): resize it"),
        (lambda p: save(p, "RGB", save_all=True, append_images=[Image.new("RGB", (16, 16), "red")]), "animated, 2 fr"),
    ],
)  # fmt: skip
def test_files_of_another_kind(tmp_path, make, told):
    with pytest.raises(ValueError, match=rf"a\.png (has|is) {told}"):
        pictures.read_picture(make(tmp_path / "a.png"))


def test_a_picture_that_was_taken_sideways_is_read_upright(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[274] = 6  # to be shown a quarter turn clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = pictures.read_picture(tmp_path / "a.png")
    assert image.shape == (3, 3, 2)
    assert image[:, 0, 1].tolist() == [1, 1, 1]
    assert image.sum() == 3


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no picture at .*none\.png"):
        pictures.read_picture(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    whole = save(tmp_path / "whole.png", "RGB", (64, 64))
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:60])
    (tmp_path / "header.ppm").write_bytes(b"P6\n64 ")
    (tmp_path / "levels.ppm").write_bytes(b"P6\n2 2\nmany\n" + bytes(12))
    tiff = sixteen_bit_tiff(tmp_path / "whole.tif").read_bytes()
    (tmp_path / "no_width.tif").write_bytes(tiff.replace(struct.pack("<HH", 256, 3), struct.pack("<HH", 0, 3)))
    for name in ("text.png", "half.png", "header.ppm", "levels.ppm", "no_width.tif"):
        with pytest.raises(OSError, match=rf"{name} cannot be read as a picture .*: save it again as PNG"):
            pictures.read_picture(tmp_path / name)
    with pytest.raises(ValueError, match=r"must end in \.png: JPEG would change"):
        pictures.write_picture(tmp_path / "a.jpg", torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"picture must lie in \[0, 1\], got \[0, 1.5\]"):
        pictures.write_picture(tmp_path / "a.png", torch.tensor([0, 1.5, 1]).reshape(3, 1, 1))
    assert not (tmp_path / "a.png").exists()


def test_from_files_to_a_file(tmp_path, model):
    model = model.float()
    for name, seed in (("a", 1), ("b", 2)):
        pictures.write_picture(tmp_path / f"{name}.png", random_images(model, 1, seed)[0])
    out = tmp_path / "new" / "c.png"
    told = watermark.disguise_file(model, tmp_path / "a.png", tmp_path / "b.png", out)
    source, saved = (pictures.read_picture(p).unsqueeze(0) for p in (tmp_path / "a.png", out))
    with torch.no_grad():
        assert told["logits"] == pytest.approx((model(saved) - model(source)).abs().max().item())
        assert (model.embed(saved) - model.embed(source)).abs().max() < 0.02  # 8 bits
    assert told["pixels"] == pytest.approx((saved - source).abs().max().item())
    assert told["pixels"] > 0.3


def test_a_watermark_is_measured_against_its_blend(tmp_path, model):
    model = model.float()
    for name, seed in (("a", 1), ("b", 2)):
        pictures.write_picture(tmp_path / f"{name}.png", random_images(model, 1, seed)[0])
    files = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    told = watermark.disguise_file(model, *files, strength=0.3)
    source, mark, saved = (pictures.read_picture(path) for path in files)
    error = (saved - (0.7 * source + 0.3 * mark)).square().mean()
    assert told["psnr"] == pytest.approx(-10 * error.log10().item(), abs=1e-3)
    assert told["psnr"] > -10 * (saved - mark).square().mean().log10() + 5
    for strength in (0, 2, -1):
        told = rf"strength must lie in \(0, 1\], where 0 would save the source as it is; got {strength}"
        with pytest.raises(ValueError, match=told):
            watermark.disguise_file(model, *files, strength=strength)


def test_a_picture_is_not_written_over_one_of_its_own(tmp_path, model, monkeypatch):
    """Nor by another name; before anything is computed."""
    own, other = (save(tmp_path / name, "RGB") for name in ("a.png", "b.png"))
    (tmp_path / "link.png").symlink_to(other)
    before = [path.read_bytes() for path in (own, other)]
    monkeypatch.setattr(watermark, "PatchNullspace", lambda _: pytest.fail("computed"))
    for out in (own, other, tmp_path / "link.png", tmp_path / ".." / tmp_path.name / "a.png"):
        with pytest.raises(ValueError, match=r"is one of the two pictures, and would be lost: name another file"):
            watermark.disguise_file(model, own, other, out)
    assert [path.read_bytes() for path in (own, other)] == before


# Photographs


@pytest.mark.parametrize("name", photographs.PHOTOGRAPHS)
def test_photographs_open_without_a_network(name, monkeypatch, model):
    pytest.importorskip(photographs.PHOTOGRAPHS[name].package)

    def refuse(*_):
        raise AssertionError("asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    image = photographs.open_photograph(name, model)
    assert image.shape == (3, 16, 16)
    assert 0 <= image.min() < image.max() <= 1
    assert image.std() > 0.05
    assert torch.equal(pictures.eight_bit(image), image)


def test_all_photographs(model):
    for package in ("skimage", "sklearn"):
        pytest.importorskip(package)
    images = photographs.open_photographs(model)
    assert images.shape == (6, 3, 16, 16)
    assert torch.equal(images[1], photographs.open_photograph("cat", model))


def test_every_photograph_has_its_licence_and_source():
    table = photographs.credit_table().set_index("photograph")
    assert table.index.tolist() == list(photographs.PHOTOGRAPHS)
    assert table.loc["flower"].tolist() == ["CC BY 2.0", "vultilion, Flickr 6056698931", "sklearn"]
    assert (table.map(len) > 0).all(axis=None)


def test_photographs_that_are_not_there(model, monkeypatch):
    with pytest.raises(ValueError, match="no photograph 'lena': there are astronaut, cat"):
        photographs.open_photograph("lena", model)
    monkeypatch.setattr(runtime, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"lies in skimage: pip install 'nslib\[xai\]'"):
        photographs.open_photograph("cat", model)


@pytest.mark.real
@pytest.mark.parametrize(("strength", "changed"), [(0.3, 0.15), (1.0, 0.5)], ids=["watermark", "disguise"])
def test_real_images_keep_their_class_through_8_bit_files(strength, changed):
    """ViT-Ti/16, 200 images, each with the next laid over: match rate and change of confidence of the saved files."""
    model = load_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", real_folder("NSLIB_WEIGHTS"))
    source = FolderImages(real_folder("NSLIB_IMAGENET"), "val", model).load(range(200)).images
    null = PatchNullspace(model)
    target = source.roll(1, 0)
    pairs = zip(source.split(20), target.split(20), strict=True)
    made = torch.cat([watermark.disguise(null, *pair, strength=strength) for pair in pairs])
    made = pictures.through_files(made)
    table = watermark.effect_table(model, source, made, target)
    assert table.match.mean() > 0.98
    assert (table.confidence_after - table.confidence_before).abs().mean() < 0.002
    assert table.pixels.median() > changed


def test_confidence_after_is_that_of_the_class_before(model):
    source, result = (torch.rand(6, 3, 16, 16, generator=generator(s)) for s in (0, 1))
    with torch.no_grad():
        model.vit.head.weight.mul_(100)
        before, after = (model(x).softmax(1) for x in (source, result))
    table = watermark.effect_table(model, source, result, source)
    assert not table.match.all()
    assert table.confidence_after.tolist() == pytest.approx(after[range(6), before.argmax(1)].tolist(), rel=1e-4)
