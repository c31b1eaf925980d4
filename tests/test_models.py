"""The stages of a ViT against timm's own forward, and every way in which a model cannot be had."""

import pickle

import pytest
import timm
import torch
from conftest import SMALL, make_vit, random_images, real_folder
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer
from torchvision.transforms.functional import normalize

import nslib
from nslib.models import build_model, load_model, reset_head, weights_record
from nslib.nullspace.membership import clean_pass
from nslib.vit.staged import StagedViT, frozen, renormalised
from nslib.vit.weights import save_weights

FAMILIES = {
    "vit_small_patch8_224": dict(img_size=24),
    "vit_tiny_patch16_224": {},
    "vit_small_patch32_224": dict(img_size=64),
    "vit_small_patch16_224.dino": dict(img_size=(32, 48)),  # not square
    "deit_tiny_distilled_patch16_224": {},  # two prefix tokens, two heads
    "deit3_small_patch16_224": {},  # position embedding without class token, layer scale
    "vit_small_patch14_dinov2": dict(img_size=28),  # layer scale
    "vit_small_patch14_reg4_dinov2": dict(img_size=28),  # registers
    "vit_base_patch16_gap_224": {},  # global pooling, no class token
    "vit_medium_patch16_reg4_gap_256": {},  # global pooling over patches only, registers
    "vit_base_patch16_clip_224": {},  # norm before the blocks, no bias in the patch embedding
    "vit_base_patch16_siglip_224": {},  # pooled by attention
    "vit_base_patch16_rpn_224": {},  # norms after the residual branches
}


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_are_timms_forward(name):
    model = make_vit(name, spread=0.05, **FAMILIES[name])
    images = random_images(model, 3)
    cfg = model.vit.pretrained_cfg
    with torch.inference_mode():
        expected = model.vit(normalize(images, cfg["mean"], cfg["std"]))
        tokens = model.embed(images)
        assert tokens.shape == (3, *model.token_shape)
        assert expected.std() > 0.05  # random, but not the same for every image and class
        assert torch.allclose(model.logits_from_tokens(tokens), expected, atol=1e-5)
        assert torch.allclose(model(images), expected, atol=1e-5)
        assert torch.allclose(model.classify(model.encode(tokens)), expected, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_are_told(name):
    model = make_vit(name, **FAMILIES[name])
    side = model.vit.patch_embed.patch_size[0]
    channels, height, width = model.image_shape
    assert channels == 3
    assert model.token_shape == ((height // side) * (width // side), 48)
    assert model.num_classes == 10
    assert model.encode(model.embed(random_images(model, 2))).shape[-1] == 48


def test_noise_leaves_class_token_and_position_alone():
    """Noise on the tokens of one image is a change of that patch's embedding, nothing else."""
    model = make_vit(spread=0.05)
    tokens = model.embed(random_images(model, 1))
    noise = torch.randn_like(tokens)
    inputs = []
    handle = model.vit.blocks[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model.logits_from_tokens(tokens)
    model.logits_from_tokens(tokens + noise)
    handle.remove()
    change = inputs[1] - inputs[0]
    assert torch.equal(change[:, 0], torch.zeros(1, 48))
    assert torch.allclose(change[:, 1:], noise, atol=1e-5)


# Loading


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with the weights of a small random `shapes_vit` under its name."""
    save_file(load_model("shapes_vit", "random", seed=3).vit.state_dict(), tmp_path / "shapes_vit.safetensors")
    return tmp_path / "shapes_vit.safetensors"


def test_weights_from_a_file_or_its_folder(checkpoint):
    images = torch.rand(2, 3, 48, 48)
    expected = load_model("shapes_vit", "random", seed=3)(images)
    for weights in (checkpoint, str(checkpoint), checkpoint.parent):
        model = load_model("shapes_vit", weights)
        assert torch.equal(model(images), expected)
        assert not model.training
        assert model.name == "shapes_vit"


def test_random_weights_depend_on_the_seed_only():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, c = (load_model("shapes_vit", "random", seed=s).vit.head.weight for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's generator is left alone


def test_missing_weights_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*w.safetensors: pass a safetensors file, a folder"):
        load_model("shapes_vit", tmp_path / "w.safetensors")


def test_folder_without_the_models_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*shapes_vit\.safetensors: .*a folder that holds"):
        load_model("shapes_vit", tmp_path)


def test_nothing_ships_for_other_models():
    with pytest.raises(FileNotFoundError, match="only for shapes_vit: pass weights"):
        load_model("vit_tiny_patch16_224", "shipped")


@pytest.mark.parametrize("kept", [0, 4, 1000, -1], ids=["empty", "length only", "header cut", "last byte missing"])
def test_truncated_weights(checkpoint, kept):
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"\d+ bytes\) is truncated or no safetensors file .*: fetch it again"):
        load_model("shapes_vit", checkpoint)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_pickles_run_no_code(tmp_path, suffix):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    path = tmp_path / f"w{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="holds more than tensors and plain values, which could run code"):
        load_model("shapes_vit", path)
    assert not (tmp_path / "exploded").exists()


def test_pickle_under_the_name_of_safetensors(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_model("shapes_vit", tmp_path / "w.safetensors")


def test_weights_of_another_architecture(checkpoint):
    with pytest.raises(ValueError, match=r"does not fit vit_tiny_patch16_224: .*name the model that it was made for"):
        load_model("vit_tiny_patch16_224", checkpoint)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("head.bias"), r"1 missing \(head\.bias\)"),
        (lambda state: state.update(extra=torch.ones(1)), r"1 unknown \(extra\)"),
        (lambda state: state.update({"head.bias": torch.ones(7)}), r"\(head\.bias \(7,\), expected \(10,\)\)"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_tensors_that_do_not_fit_are_named(checkpoint, change, told):
    state = load_file(checkpoint)
    change(state)
    save_file(state, checkpoint)
    with pytest.raises(ValueError, match=told):
        load_model("shapes_vit", checkpoint)


@pytest.mark.parametrize("asked", [None, 10])
def test_head_has_the_classes_of_the_file_unless_others_are_asked_for(tmp_path, asked):
    path = tmp_path / "w.safetensors"
    seven = load_model("shapes_vit", "random", num_classes=7)
    save_weights(seven, path)
    if asked is None:
        assert torch.equal(load_model("shapes_vit", path).vit.head.weight, seven.vit.head.weight)
    else:
        with pytest.raises(ValueError, match=r"\(head\.bias \(7,\), expected \(10,\)\); load it without .*reset_head"):
            load_model("shapes_vit", path, num_classes=asked)


def test_a_file_without_a_head(tmp_path):
    save_weights(load_model("shapes_vit", "random", num_classes=0), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"2 missing \(head\.bias\); load it without num_classes, then .*reset_head"):
        load_model("shapes_vit", tmp_path / "w.safetensors", num_classes=10)
    model = load_model("shapes_vit", tmp_path / "w.safetensors")
    assert model.num_classes == 0
    with pytest.raises(ValueError, match=r"has no head: give it one by nslib\.models\.reset_head"):
        clean_pass(model, random_images(model, 3))
    reset_head(model, 5)
    assert clean_pass(model, random_images(model, 3)).logits.shape == (3, 5)


def test_normalisation_of_a_file_goes_before_that_of_the_tag(tmp_path):
    own = load_model("shapes_vit", "random")
    other = renormalised(own, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    save_weights(other, tmp_path / "w.safetensors")
    again = load_model("shapes_vit", tmp_path / "w.safetensors")
    assert again.name == "shapes_vit"
    assert again.stored_dtype == torch.float32
    assert torch.equal(again.mean, other.mean)
    assert torch.equal(again.std, other.std)
    images = random_images(own, 2)
    assert torch.equal(again(images), other(images))
    assert not torch.allclose(again(images), own(images), atol=1e-3)


def test_a_new_head_depends_on_the_seed_only():
    heads = []
    for seed in (0, 0, 1):
        model = load_model()
        torch.rand(seed)
        before = torch.get_rng_state()
        reset_head(model, 7, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 7)
        heads.append(model.vit.head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_head_that_fits_is_kept():
    model = load_model()
    before = model.vit.head.weight
    reset_head(model, 10)
    assert model.vit.head.weight is before
    with pytest.raises(ValueError, match="num_classes must be >= 1, got -1"):
        reset_head(model, -1)


def test_unknown_model_names_its_neighbours():
    with pytest.raises(ValueError, match=r"no model named 'vit_tiny_patch99_224' in timm .*; near it: vit_tiny_patch"):
        load_model("vit_tiny_patch99_224", "random")


@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_unknown_tag_of_a_known_model(weights):
    with pytest.raises(ValueError, match=r"has no tag 'nonsense' in timm .*: vit_tiny_patch16_224\.augreg_in21k,"):
        load_model("vit_tiny_patch16_224.nonsense", weights)


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        ("resnet18", {}, "resnet18 is a ResNet"),
        ("resnet18", dict(img_size=32), "resnet18 .*ResNet"),
        ("swin_tiny_patch4_window7_224", {}, "is a SwinTransformer"),
        ("vit_tiny_r_s16_p8_224", {}, "has a patch embedding HybridEmbed"),
        ("vit_tiny_patch16_224", dict(dynamic_img_size=True), "was made with dynamic_img_size"),
    ],
)
def test_no_such_vit(name, kwargs, told):
    with pytest.raises(TypeError, match=rf"{told}.*expected a timm VisionTransformer"):
        build_model(name, **kwargs)


def test_a_patch_embedding_that_pads_is_refused_where_it_would():
    """timm would show the padded rim to the model, and `embed` cut it off."""
    padding = dict(SMALL, dynamic_img_pad=True)
    with pytest.raises(TypeError, match="pads its images to whole patches: make it with an img_size that they divide"):
        StagedViT(VisionTransformer(**padding | dict(img_size=30)), mean=(0.5,) * 3, std=(0.5,) * 3)
    StagedViT(VisionTransformer(**padding), mean=(0.5,) * 3, std=(0.5,) * 3)


def test_a_tag_in_grey_has_the_mean_of_its_channels():
    model = build_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", in_chans=1, depth=1, pretrained=False)
    assert (model.image_shape, model.mean.flatten().tolist()) == ((1, 224, 224), [0.5])


def test_mean_must_have_the_images_channels():
    vit = VisionTransformer(in_chans=1, **SMALL)
    with pytest.raises(ValueError, match="mean"):
        StagedViT(vit, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_hub_out_of_reach():
    tag = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    with pytest.raises(ConnectionError, match=rf"could not be fetched .*: pass weights .*{tag}\.safetensors"):
        load_model(tag)


def test_the_small_model_is_on_no_hub():
    with pytest.raises(ValueError, match=r"pass weights \(--weights\) shipped, random or a safetensors file"):
        load_model("shapes_vit", "pretrained")


def test_shipped_model_is_the_default():
    model = nslib.load_model()
    assert model.image_shape == (3, 48, 48)
    assert 1.2e6 < sum(p.numel() for p in model.vit.parameters()) < 1.4e6
    assert weights_record()["config"]["model"] == "shapes_vit"


@pytest.mark.real
def test_pretrained_folder_gives_the_pretrained_model():
    tag = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    folder = real_folder("NSLIB_WEIGHTS")
    model = load_model(tag, folder)
    own = timm.create_model(tag, pretrained_cfg_overlay=dict(file=folder / f"{tag}.safetensors"), pretrained=True)
    images = random_images(model, 2)
    with torch.inference_mode():
        assert torch.allclose(model(images), own.eval()(images * 2 - 1), atol=1e-5)


# What goes in


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((2, 1, 32, 32), "it takes 3 channels"), ((2, 3, 32, 48), "resize first"), ((3, 32, 32), "one image is a batch")],
)
def test_images_of_another_shape(vit, shape, remedy):
    with pytest.raises(ValueError, match=rf"images must be \(B, 3, 32, 32\) .*got \({shape[0]}, .*: {remedy}"):
        vit.check_images(torch.rand(shape))


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, float("nan"), float("inf")])
def test_images_outside_of_the_unit_range(vit, value):
    images = random_images(vit, 2)
    vit.check_images(images)
    images[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got .*: .*pass raw pixels / 255"):
        vit.check_images(images)


def test_images_at_the_ends_of_the_range_are_fine(vit):
    vit.check_images(torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)]))


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("vit_tiny_patch16_224", (1, 5, 48), r"must be \(1, 4, 48\) .*got \(1, 5, 48\): drop the class token"),
        ("deit_tiny_distilled_patch16_224", (1, 6, 48), r"got \(1, 6, 48\): drop the class token"),
        ("vit_tiny_patch16_224", (4, 48), r"must be \(1, 4, 48\) for .*, got \(4, 48\)$"),
        ("vit_tiny_patch16_224", (2, 4, 48), r"got \(2, 4, 48\)$"),
        ("vit_base_patch16_gap_224", (1, 5, 48), r"got \(1, 5, 48\)$"),  # it has no class token
    ],
)
def test_noise_of_another_shape(name, shape, told):
    with pytest.raises(ValueError, match=told):
        make_vit(name).check_noise(torch.zeros(shape))


def test_noise_of_another_type(vit):
    vit.check_noise(torch.zeros(1, 4, 48))
    with pytest.raises(ValueError, match=r"must be torch.float32 on cpu .*got torch.float64 on cpu: use noise\.to"):
        vit.check_noise(torch.zeros(1, 4, 48, dtype=torch.float64))


def test_noise_on_another_device(vit):
    with pytest.raises(ValueError, match=r"got torch.float32 on meta: use noise\.to"):
        vit.check_noise(torch.zeros(1, 4, 48, device="meta"))


def test_training_mode_is_refused(vit):
    vit.check_frozen_use()
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        vit.train().check_frozen_use()


def test_frozen_restores_the_flags(vit):
    vit.vit.head.requires_grad_(False)
    flags = [p.requires_grad for p in vit.parameters()]
    assert len(set(flags)) == 2
    with frozen(vit):
        assert not any(p.requires_grad for p in vit.parameters())
    assert [p.requires_grad for p in vit.parameters()] == flags
    with pytest.raises(ZeroDivisionError), frozen(vit):
        _ = 1 / 0
    assert [p.requires_grad for p in vit.parameters()] == flags


def test_image_smaller_than_a_patch():
    with pytest.raises(ValueError, match=r"takes images \(8, 8\), a patch \(16, 16\): img_size must be at least one"):
        build_model("vit_tiny_patch16_224", img_size=8)


@pytest.mark.parametrize("kind", [{"qk_norm": True}, {"qkv_bias": False}, {"scale_attn_norm": True}])
def test_last_block_with_every_kind_of_attention(kind):
    model = make_vit(spread=0.05, **kind)
    tokens = model.embed(random_images(model, 3))
    assert torch.allclose(model.logits_from_tokens(tokens), model.classify(model.encode(tokens)), atol=1e-5)


def test_last_block_honours_a_layer_put_in_place_of_the_query():
    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + x.repeat(1, 1, 3)

    model = make_vit(spread=0.05)
    tokens = model.embed(random_images(model, 3))
    before = model.logits_from_tokens(tokens)
    model.vit.blocks[-1].attn.qkv.__class__ = Adapted
    after = model.logits_from_tokens(tokens)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.allclose(after, model.classify(model.encode(tokens)), atol=1e-5)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_small_patch14_dinov2"])
def test_what_the_last_block_leaves_out_changes_no_gradient(name):
    model = make_vit(name, spread=0.05, **FAMILIES[name])
    images = random_images(model, 3)
    gradients = []
    for forward in (model.logits_from_tokens, lambda tokens: model.classify(model.encode(tokens))):
        tokens = model.embed(images)
        forward(tokens).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.vit.named_parameters()})
        model.zero_grad()
    for parameter, expected in gradients[1].items():
        assert torch.allclose(gradients[0][parameter], expected, atol=1e-5 * expected.abs().max().item()), parameter


@pytest.mark.parametrize("begin", [lambda: load_model(weights="random"), lambda: reset_head(load_model(), 7)])
def test_random_weights_leave_the_generators_as_they_were(begin, monkeypatch):
    """That of the CPU goes on where it was, and those of other devices are not asked."""
    monkeypatch.setattr("torch.cuda.manual_seed_all", lambda seed: pytest.fail("seeded every GPU"))
    before = torch.get_rng_state()
    begin()
    assert torch.equal(torch.get_rng_state(), before)
