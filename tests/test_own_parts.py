"""What users bring of their own: models, data sets and objectives, and mistakes that would go unnoticed in them."""

import os
import subprocess
import sys
from ast import literal_eval
from dataclasses import dataclass, replace
from functools import cached_property, partial

import pytest
import torch
from conftest import FewImages, make_vit, random_images, tiny_vit
from safetensors.torch import save_file
from timm.models import VisionTransformer
from torch.nn import functional as F

from nslib.attacks.gradient import fgsm
from nslib.attacks.surrogate import load_surrogate
from nslib.config import DataConfig, FinetuneConfig, NoiseConfig, SuiteConfig
from nslib.data.shapes import Batch
from nslib.data.source import ShapesSource, checked, open_source
from nslib.evaluate.bench import Bench
from nslib.evaluate.columns import missing_of
from nslib.evaluate.suite import evaluate_model
from nslib.finetune.cost import metered
from nslib.finetune.cut import cut_at
from nslib.finetune.objectives import OBJECTIVES, Objective, adversarial, against_labels
from nslib.finetune.rounds import finetune_model
from nslib.finetune.state import identity_of
from nslib.models import load_model, put_weights, reset_head
from nslib.nullspace.encoder import learn_noise
from nslib.nullspace.membership import boundary_scale, clean_pass, make_pool
from nslib.nullspace.patch import PatchNullspace
from nslib.runtime import generator
from nslib.store import model_digest
from nslib.vit.staged import StagedViT
from nslib.vit.weights import read_weights

CLEAN = SuiteConfig(columns=("clean",), images=8, batch=4)
TINY = FinetuneConfig(objective="plain", rounds=2, steps=2, batch=4, pool=4, heldout=2, noise=NoiseConfig(steps=2))
HALF = (0.5, 0.5, 0.5)


class Altered(ShapesSource):
    """Shapes of which each batch goes through a function."""

    def __init__(self, model, change):
        super().__init__(DataConfig(), model)
        self.change = change

    def pick(self, split, rows):
        return self.change(*super().pick(split, rows))


WRONG = {
    "two columns of labels": (lambda x, y: Batch(x, y[:, None].expand(-1, 2)), r"labels \(\d+,\) of integers, got"),
    "labels that are fractions": (lambda x, y: Batch(x, y.float()), "torch.float32$"),
    "arrays": (lambda x, y: Batch(x.numpy(), y.numpy()), "must be tensors, got ndarray and ndarray: torch.as_tensor"),
    "too few": (lambda x, y: Batch(x[:-1], y[:-1]), r"was asked for \d+ images"),
    "levels": (lambda x, y: Batch(255 * x, y), r"images must lie in \[0, 1\], got"),
    "whole numbers": (lambda x, y: Batch((255 * x).byte(), y), "got images .* torch.uint8"),
    "NaN": (lambda x, y: Batch(x * torch.nan, y), r"images must lie in \[0, 1\], got \[nan"),
    "another size": (lambda x, y: Batch(x[..., 1:], y), "resize first"),
    "labels beyond the head": (lambda x, y: Batch(x, y + 8), r"labels must lie in 0\.\.9, .*, got .*num_classes="),
}


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=list(WRONG))
def test_a_data_set_with_wrong_batches(model, change, told):
    source = Altered(model, change)
    with pytest.raises(ValueError, match=told):
        evaluate_model(model, source, CLEAN, progress=False)
    with pytest.raises(ValueError, match=told):
        finetune_model(model, source, TINY)


def test_batches_are_taken_as_the_model_needs_them(model):
    """A plain tuple, in float64 with short labels, says the same as what the embedded source gives."""
    plain = Altered(model, lambda x, y: (x.double(), y.to(torch.int16)))
    images, labels = checked(plain.take("val", 4), 4, model)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    hits = [evaluate_model(model, s, CLEAN, progress=False).hits["clean"][""].tolist() for s in
            (plain, ShapesSource(DataConfig(), model))]  # fmt: skip
    assert hits[0] == hits[1]
    assert finetune_model(model, plain, TINY).history


def test_a_class_that_inherits_from_a_data_set_is_told_apart(model):
    own = Altered(model, Batch).identity("val")
    assert own != ShapesSource(DataConfig(), model).identity("val")
    assert own["class"].startswith("Altered ")
    assert own == Altered(model, Batch).identity("val")
    dims = [Altered(model, lambda x, y, by=by: Batch(x * by, y)).identity("val") for by in (0.1, 0.2, 0.2)]
    assert dims[0] != dims[1] == dims[2]


def test_folders_that_would_not_be_read(model):
    with pytest.raises(
        ValueError, match=r"the embedded shapes read no folder, and root, a of data is set: set data.kind"
    ):
        open_source(DataConfig(root="/data", a="/data/a"), model)


def test_only_models_of_the_same_classes_are_compared(model, source):
    bench = Bench(model, source, CLEAN)
    other = make_vit("shapes_vit", img_size=24, embed_dim=24, depth=2, num_heads=2, num_classes=5)
    with pytest.raises(
        ValueError, match="answers with 5 classes and shapes_vit with 10: only models of the same classes"
    ):
        bench.of(other)
    assert bench.of(tiny_vit()).model is not model


def own_vit(**changes) -> StagedViT:
    """A ViT with the same weights whatever changes."""
    torch.manual_seed(0)
    kwargs = dict(img_size=24, patch_size=12, embed_dim=24, depth=2, num_heads=2, num_classes=10)
    return StagedViT(VisionTransformer(**kwargs | changes), mean=HALF, std=HALF).eval()


@pytest.mark.parametrize("change", [{"num_heads": 4}, {"act_layer": torch.nn.ReLU}, {"fc_norm": False}])
def test_own_architectures_of_the_same_weights_are_told_apart(change):
    first, other = own_vit(), own_vit(**change)
    weights = [m.vit.state_dict() for m in (first, other)]
    assert all(torch.equal(weights[0][k], w) for k, w in weights[1].items())
    same = change == {"fc_norm": False}  # what is so anyway
    assert (model_digest(first) == model_digest(other)) == same


class Dark(StagedViT):
    """A defence before the model, in a class of its own."""

    def forward(self, images):
        return super().forward(images * 0.1)


def darkened(model: StagedViT) -> StagedViT:
    return Dark(model.vit, mean=HALF, std=HALF).eval()


def with_relu(model: StagedViT) -> StagedViT:
    model.vit.blocks[0].mlp.act = torch.nn.ReLU()
    return model


def without_its_block(model: StagedViT) -> StagedViT:
    model.vit.blocks[-1].register_forward_hook(lambda block, given, out: given[0])
    return model


def without_attention(model: StagedViT) -> StagedViT:
    model.vit.blocks[-1].attn.register_forward_hook(lambda attention, given, out: 0 * out)
    return model


@pytest.mark.parametrize("change", [darkened, with_relu, without_its_block, without_attention])
@pytest.mark.parametrize("made", [own_vit, tiny_vit])
def test_a_model_that_was_changed_is_another(made, change):
    first, other = made(), change(made())
    images = random_images(first, 2)
    assert not torch.allclose(first(images), other(images))
    assert model_digest(first) != model_digest(other) == model_digest(change(made()))
    assert model_digest(cut_at(first, 1)) == model_digest(cut_at(made(), 1))
    if change is darkened:  # a cut model would not be of that class any more
        with pytest.raises(ValueError, match=r"block must be 0 for .* lose the code of Dark, got 1"):
            cut_at(other, 1)
    else:
        assert model_digest(cut_at(first, 1)) != model_digest(cut_at(other, 1))


class Noised(StagedViT):
    """With noise in an attribute of its own."""

    def __init__(self, model: StagedViT, by: float):
        super().__init__(model.vit, mean=HALF, std=HALF)
        tokens, width = self.token_shape  # a noise that is the same in all channels, layer norm takes away
        self.noise = by * torch.linspace(-1, 1, tokens * width).reshape(1, tokens, width)
        self.eval()

    def embed(self, images):
        return super().embed(images) + self.noise


class Scaling:
    def __init__(self, by: float):
        self.by = by

    def __call__(self, block, given, out):
        return self.by * out


def hooked_by(model: StagedViT, hook) -> StagedViT:
    model.vit.blocks[0].register_forward_hook(hook)
    return model


def called_by(model: StagedViT, forward) -> StagedViT:
    block = model.vit.blocks[0]
    block.forward = partial(forward, type(block).forward, block)
    return model


BY_A_NUMBER = {
    "attribute": Noised,
    "closure": lambda model, by: hooked_by(model, lambda block, given, out: by * out),
    "default": lambda model, by: hooked_by(model, lambda block, given, out, by=by: by * out),
    "object": lambda model, by: hooked_by(model, Scaling(by)),
    "method": lambda model, by: hooked_by(model, Scaling(by).__call__),
    "forward": lambda model, by: called_by(model, lambda own, block, x, **rest: by * own(block, x, **rest)),
    "forward by an argument": lambda model, by: called_by(
        model, partial(lambda factor, own, block, x, **rest: factor * own(block, x, **rest), by)
    ),
}


@pytest.mark.parametrize("change", BY_A_NUMBER.values(), ids=list(BY_A_NUMBER))
def test_a_model_that_was_changed_by_a_number_is_another_for_each(change):
    one, other, again = (change(tiny_vit(), by) for by in (0.5, 2.0, 2.0))
    images = random_images(one, 2)
    assert not torch.allclose(one(images), other(images))
    assert model_digest(one) != model_digest(other) == model_digest(again)


def test_a_description_is_the_same_in_every_process():
    """Whatever the seed of Python's hashes and wherever objects lie."""
    code = """
import torch
from functools import cached_property, partial
from nslib.description import short
class Own:
    def __init__(self, by):
        self.by, self.known, self.kind, self.places = by, {"a", "b", "c"}, torch.float16, slice(1, by)
    def act(self, x, hue="red"):
        return self.by if hue in {"red", "green", "blue"} else x
print([short(v) for by in (1, 2) for v in (Own(by), Own(by).act, partial(Own.act, Own(by)), lambda x: by * x)])
print(len({short(torch.float16), short(torch.float32), short(slice(1)), short({1}), short({2}), short(print)}))
"""
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    (one,) = told
    digests, different = one.splitlines()
    assert len(set(literal_eval(digests))) == 8
    assert different == "6"


def test_code_that_was_changed_under_the_same_name_is_other_code():
    made = []
    for by in ("0.1", "0.2", "0.2"):
        names = {"StagedViT": StagedViT}
        body = f"def embed(self, images): return StagedViT.embed(self, images * {by})"
        exec(f"class Dimmed(StagedViT):\n    {body}", names)
        made.append(names["Dimmed"](tiny_vit().vit, mean=HALF, std=HALF).eval())
    assert model_digest(made[0]) != model_digest(made[1]) == model_digest(made[2])


def test_a_hook_on_the_patch_embedding_counts():
    for part in ("patch_embed", "patch_embed.proj"):
        model = tiny_vit()
        images = random_images(model, 2)
        before = model(images)
        model.vit.get_submodule(part).register_forward_hook(lambda stem, given, out: 0.5 * out)
        assert torch.allclose(model(images), model.vit((images - model.mean) / model.std), atol=1e-5)
        assert not torch.allclose(model(images), before, atol=1e-3)


def test_a_convolution_of_ones_own_is_refused():
    class Triple(torch.nn.Conv2d):
        def forward(self, x):
            return 3 * super().forward(x)

    vit = tiny_vit().vit
    vit.patch_embed.proj = Triple(3, vit.embed_dim, 8, stride=8)
    with pytest.raises(TypeError, match="has a patch embedding PatchEmbed of Triple: expected a timm"):
        StagedViT(vit, mean=HALF, std=HALF)


def test_a_head_of_another_size_from_a_file_is_no_change(tmp_path):
    """A file as timm writes it, without mean and std: the model is the one that was made with so many classes."""
    made = make_vit(num_classes=7)
    save_file(made.vit.state_dict(), tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    read = [put_weights(make_vit(num_classes=n), found, "w") for n in (3, 7)]
    assert read[0].num_classes == 7
    assert model_digest(read[0]) == model_digest(read[1])
    other = make_vit(num_classes=3)
    reset_head(other, 7)
    assert "vit" not in other.identity()


@pytest.mark.parametrize("change", [lambda m: reset_head(m, 7), lambda m: m.give_size((64, 64))], ids=["head", "size"])
def test_what_was_put_into_a_vit_is_told_after_it_was_given_another_head_or_size(change):
    before, after, none = load_model(), load_model(), load_model()
    before.vit.blocks[0].mlp.act = torch.nn.ReLU()
    for model in (before, after, none):
        change(model)
    after.vit.blocks[0].mlp.act = torch.nn.ReLU()
    assert model_digest(before) == model_digest(after) != model_digest(none)


def test_counting_passes_changes_no_model():
    model = tiny_vit()
    before = model_digest(model)
    with metered(model):
        assert model_digest(model) == before


def test_a_head_that_pools_nothing_is_refused():
    with pytest.raises(TypeError, match="custom has a head that pools no tokens: make it with global_pool='token'"):
        own_vit(global_pool="", class_token=True)


def test_networks_of_the_same_weights_make_transferred_images_of_their_own():
    def surrogate(stride: int) -> torch.nn.Module:
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 4, 3, stride=stride), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
        return torch.nn.Sequential(*layers, torch.nn.Linear(4, 10)).eval()

    def tempered(by: float) -> torch.nn.Module:
        made = surrogate(1)
        made.temperature = by
        return made

    assert len({model_digest(surrogate(stride)) for stride in (1, 2, 2)}) == 2
    assert len({model_digest(tempered(by)) for by in (1.0, 2.0, 2.0)}) == 2


def test_a_surrogate_for_images_of_another_size_is_refused(model, source):
    told = r"made for images of 48 px, shapes_vit takes 24: load_surrogate\(\.\.\., size=24\)"
    with pytest.raises(ValueError, match=told):
        Bench(model, source, CLEAN, load_surrogate())


def test_weights_of_64_bits_are_refused(model, source):
    with pytest.raises(ValueError, match=r"weights of torch\.float64, attacks need float32: evaluate model\.float"):
        Bench(tiny_vit().double(), source, CLEAN)


def test_an_own_data_set_has_no_cues(model):
    own = FewImages(4)
    own.missing = lambda split: ""
    found = missing_of("cue_conflict", Bench(model, own, CLEAN))
    assert found == "cue_conflict needs files that tell both of their cues, as a FolderSource has"


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [
        ((123, 116, 103), (58, 57, 57), r"mean must have a number in \[0, 1\] .*, got \(123.* by 255"),
        (HALF, (0.5, 0.5, 0.0), r"std must have a number in \(0, 1\]"),
        (HALF, (0.5, -0.5, 0.5), r"std must have a number in \(0, 1\]"),
        ((0.5, float("nan"), 0.5), HALF, "mean must have"),
        (0.5, HALF, r"mean must have .* for each of 3 channels, got 0\.5"),
        (HALF, (0.5,), "std must have .* for each of 3 channels"),
    ],
)
def test_mean_and_std_that_no_images_have(mean, std, told):
    with pytest.raises(ValueError, match=told):
        StagedViT(own_vit().vit, mean=mean, std=std)


def test_models_without_weights_have_a_mean_and_std():
    """As those of the survey of timm, of which shapes alone are asked."""
    with torch.device("meta"):
        assert own_vit().mean.is_meta


@dataclass
class Weighted:
    """A loss that cannot be looked up in a table."""

    weight: float = 2.0

    def __call__(self, model, view, cfg):
        return self.weight * F.cross_entropy(model(view.images), view.targets)


def test_settings_of_an_own_objective_tell_models_apart(monkeypatch):
    """Its loss and its attack may take any of them."""
    monkeypatch.setitem(OBJECTIVES, "object", Objective(Weighted()))
    attack = lambda model, view, cfg, generator: view.images  # noqa: E731
    monkeypatch.setitem(OBJECTIVES, "attacked", Objective(adversarial, attack=attack))
    loss = lambda model, view, cfg: F.cross_entropy(model(view.adversarial), view.targets)  # noqa: E731
    monkeypatch.setitem(OBJECTIVES, "mine", Objective(loss, attack=against_labels))
    monkeypatch.setitem(OBJECTIVES, "other", Objective(loss))
    changed = replace(TINY, attack_eps=0.25, trades_beta=6.0)
    mine, other, plain = (identity_of(replace(changed, objective=o)) for o in ("mine", "other", "plain"))
    own = (mine, other, *(identity_of(replace(changed, objective=o)) for o in ("object", "attacked")))
    assert {(c.attack_eps, c.trades_beta) for c in own} == {(0.25, 6.0)}
    assert (plain.attack_eps, plain.trades_beta) == (FinetuneConfig.attack_eps, FinetuneConfig.trades_beta)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"noise": "learnt"}, "noise of an objective must be one of learned, permuted, .*, or empty, got 'learnt'"),
        ({"recipe": {"mix_up": 0.8}}, "recipe of an objective names mix_up: settings are objective, rounds"),
        ({"recipe": {"noise.stop": "batch"}}, "no setting 'noise.stop': NoiseConfig has limit, lr"),
        ({"recipe": {"noise.stop_on": "train"}}, "stop_on must be heldout or batch, got 'train'"),
    ],
)
def test_objectives_that_cannot_be(wrong, told):
    with pytest.raises(ValueError, match=told):
        Objective(lambda *_: None, **wrong)


def test_what_is_measured_after_a_round_may_be_nothing(model, source, tmp_path):
    seen = []
    done = finetune_model(model, source, TINY, target=tmp_path / "t.safetensors", on_round=lambda k, m: seen.append(k))
    assert seen == [0, 1]
    assert [r.measured for r in done.history] == [{}, {}]


def test_a_target_that_is_a_folder(model, source, tmp_path):
    (tmp_path / "t.safetensors").mkdir()
    with pytest.raises(ValueError, match="target must be a file, got the folder"):
        finetune_model(model, source, TINY, target=tmp_path / "t.safetensors")


def test_a_pool_of_another_model(vit):
    other = tiny_vit()
    pool = make_pool(other, random_images(other, 6), heldout=2)
    with pytest.raises(ValueError, match="the pool's train part is of another model than vit_tiny_patch16_224"):
        learn_noise(vit, pool, NoiseConfig(steps=2), generator=generator(0))


def test_a_start_that_takes_a_gradient(vit, pool):
    start = torch.zeros(1, *vit.token_shape, requires_grad=True)
    found = learn_noise(vit, pool, NoiseConfig(steps=2, eps=None), generator=generator(0), start=start)
    assert found.steps == 2
    assert not start.any()


@pytest.mark.parametrize("wrong", [{"growth": 1.0}, {"limit": 0.0}, {"precision": 0.0}])
def test_a_march_that_would_not_end(vit, wrong):
    clean = clean_pass(vit, random_images(vit, 2))
    with pytest.raises(ValueError, match="growth must be > 1, limit and precision > 0, got"):
        boundary_scale(vit, clean, torch.ones(1, *vit.token_shape), 0.03, **wrong)


def test_a_nullspace_of_what_is_no_number(vit):
    with pytest.raises(ValueError, match="tol must be >= 0, got nan"):
        PatchNullspace(vit, tol=float("nan"))
    with pytest.raises(ValueError, match=r"floating type, got torch\.uint8: divide levels by 255"):
        PatchNullspace(vit).project(torch.zeros(1, *vit.image_shape, dtype=torch.uint8))
    with torch.no_grad():
        vit.vit.patch_embed.proj.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"weights of the patch embedding of .* are not finite"):
        PatchNullspace(vit)


def test_settings_that_are_no_whole_numbers():
    with pytest.raises(ValueError, match=r"rounds must be a whole number, got 2\.5"):
        FinetuneConfig(rounds=2.5)
    with pytest.raises(ValueError, match="fgsm_eps must be in"):
        SuiteConfig(fgsm_eps=None)


def test_finetuning_of_few_own_images(model):
    """As in the README's recipe: a data set of a user's own needs no more than the methods of `Source`."""
    assert len(finetune_model(model, FewImages(16), TINY).history) == 2


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("blocks.0.norm1", "eps", 1e-2), ("blocks.1.attn", "scale", 0.5), ("", "pool_include_prefix", True)],
)
def test_values_that_neither_a_tensor_nor_a_print_tells_are_told(part, name, value):
    """Of a model of one's own, and of one by its name that was set otherwise since."""
    for make in (own_vit, lambda: load_model(img_size=48)):
        first, other = make(), make()
        assert model_digest(first) == model_digest(other)
        setattr(other.vit.get_submodule(part), name, value)
        assert model_digest(first) != model_digest(other)
    assert model_digest(own_vit()) != model_digest(StagedViT(other.vit, mean=HALF, std=HALF))


@pytest.mark.parametrize("put", [
    lambda part: setattr(part, "forward", partial(type(part).forward, part)),
    lambda part: setattr(part, "kept", [1, 2]),
    lambda part: setattr(part, "shift", torch.ones(2)),
    lambda part: setattr(part, "activate", torch.relu),
])  # fmt: skip
def test_what_is_put_into_a_part_is_told(put):
    first, other = load_model(img_size=48), load_model(img_size=48)
    put(other.vit.blocks[1].mlp)
    assert model_digest(first) != model_digest(other)


def test_what_changes_no_result_is_not_told():
    first, other = own_vit(), own_vit()
    other.vit.set_grad_checkpointing()
    other.vit.blocks[0].attn.fused_attn = False
    other.vit.blocks[0].register_full_backward_hook(lambda *_: None).remove()
    assert model_digest(first) == model_digest(other.train())


@pytest.mark.parametrize("step", ["forward", "forward_features"])
def test_a_vit_with_a_step_of_its_own_is_refused(step):
    """The stages call parts of the ViT: what it does in that step would be left out."""
    kind = type("Louder", (VisionTransformer,), {step: lambda self, x, **kwargs: getattr(super(), step)(x)})
    vit = kind(img_size=24, patch_size=12, embed_dim=24, depth=1, num_heads=2, num_classes=10)
    with pytest.raises(TypeError, match=f"is a Louder with a {step} of its own, which is never called here"):
        StagedViT(vit, mean=HALF, std=HALF)


def test_learning_in_inference_mode_is_refused(model):
    source = open_source(DataConfig(), model)
    pool = make_pool(model, source.take("train", 6).images, heldout=2)
    with torch.inference_mode():
        for learn in (
            lambda: learn_noise(model, pool, TINY.noise, generator=generator(0)),
            lambda: finetune_model(model, source, TINY),
        ):
            with pytest.raises(ValueError, match="learning needs gradients: call it outside"):
                learn()


def test_a_finished_model_is_known_by_the_code_of_an_objective_of_one_s_own(model, monkeypatch, tmp_path):
    def finetune(name, loss):
        monkeypatch.setitem(OBJECTIVES, name, Objective(loss))
        target = tmp_path / f"{name}.safetensors"
        return finetune_model(model, FewImages(16), replace(TINY, objective=name), target=target)

    def weighted(weight):
        return lambda model, view, cfg: weight * F.cross_entropy(model(view.images), view.targets)

    assert not finetune("mine", weighted(2)).found
    assert finetune("mine", weighted(2)).found
    for other in (weighted(3), lambda model, view, cfg: F.cross_entropy(model(view.images), view.targets)):
        with pytest.raises(ValueError, match=r"made with other settings: objective was '\w{16}', is '\w{16}'; remove"):
            finetune("mine", other)
    target = tmp_path / "plain.safetensors"
    finetune_model(model, FewImages(16), TINY, target=target)
    with pytest.raises(ValueError, match=r"objective was None, is '\w{16}'"):
        finetune("plain", weighted(2))


LOSSES = {
    "one for each image": (lambda m, v, c: F.cross_entropy(m(v.images), v.targets, reduction="none"), r"got \(4,\)"),
    "a number": (lambda m, v, c: 1.0, "got float"),
    "without gradient": (lambda m, v, c: F.cross_entropy(m(v.images), v.targets).detach(), r"got \(\)"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_is_none(model, monkeypatch, name):
    loss, told = LOSSES[name]
    monkeypatch.setitem(OBJECTIVES, "mine", Objective(loss))
    with pytest.raises(ValueError, match=f"the loss of objective mine must be a scalar with a gradient, {told}"):
        finetune_model(model, open_source(DataConfig(), model), replace(TINY, objective="mine"))


def test_attacks_take_images_of_numpys_type(model):
    images, labels = open_source(DataConfig(), model).take("val", 4)
    found = fgsm(model, images.double(), labels, eps=4 / 255)
    assert torch.equal(found, fgsm(model, images, labels, eps=4 / 255))


class Only:
    """A source of which nothing but these methods is there."""

    def __init__(self, source, *methods):
        for method in methods:
            setattr(self, method, getattr(source, method))


def test_the_methods_of_a_source_that_finetuning_and_evaluation_ask_for(model):
    source = open_source(DataConfig(), model)
    finetune_model(model, Only(source, "take", "pick", "count", "identity"), TINY)
    rest = ("take", "count", "missing", "named", "classes", "identity")
    assert evaluate_model(model, Only(source, *rest), CLEAN, progress=False).hits.keys() == {"clean"}


def test_what_is_no_batch_of_images(model):
    images = open_source(DataConfig(), model).take("val", 4).images
    with pytest.raises(ValueError, match=r"one image is a batch too, images.unsqueeze\(0\)"):
        make_pool(model, images[0], heldout=1)
    with pytest.raises(ValueError, match="images must be a tensor, got a ndarray"):
        make_pool(model, images.numpy(), heldout=1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FinetuneConfig(lr="1e-4"), "lr must be > 0 and finite, got '1e-4'"),
        (lambda: FinetuneConfig(noise={"steps": 3}), "noise must be a NoiseConfig, got {'steps': 3}"),
        (lambda: FinetuneConfig(rounds=True), "rounds must be a whole number, got True"),
        (lambda: SuiteConfig(columns="clean"), "columns must be several names, such as .*, got 'clean'"),
    ],
)
def test_configurations_of_the_wrong_kind(make, told):
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize("kind", [StagedViT, ShapesSource])
def test_a_cached_property_is_told_by_its_code_and_not_by_whether_it_was_asked_for(kind):
    def told(shift, *, asked=False):
        own = type("Mine", (kind,), {"shift": cached_property(shift), "__module__": __name__})
        mine = own(tiny_vit().vit, mean=HALF, std=HALF) if kind is StagedViT else own(DataConfig(), tiny_vit())
        if asked:
            assert mine.shift in (0.1, 0.2)
        return model_digest(mine) if kind is StagedViT else str(mine.identity("val"))

    first = told(lambda self: 0.1)
    assert told(lambda self: 0.1, asked=True) == first
    assert told(lambda self: 0.2) != first
