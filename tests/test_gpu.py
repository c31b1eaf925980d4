"""What is done otherwise on a CUDA device; and, on any, that the passes of a search are the formulas they stand for."""

from dataclasses import replace

import pytest
import torch
from conftest import make_vit

from nslib.config import DataConfig, FinetuneConfig, NoiseConfig, PretrainConfig
from nslib.data.source import ShapesSource
from nslib.finetune.cost import Meter, metered
from nslib.finetune.precision import resolved
from nslib.finetune.rounds import finetune_model
from nslib.machine import replay
from nslib.machine.replay import counting
from nslib.nullspace import encoder
from nslib.nullspace.encoder import learn_noise, start_noise
from nslib.nullspace.membership import make_pool
from nslib.nullspace.passes import NoisePass, RecordedPass, noise_pass
from nslib.nullspace.patch import PatchNullspace
from nslib.pretrain import pretrain
from nslib.runtime import generator
from nslib.vit.staged import StagedViT, frozen

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def vit(device: str, **kwargs) -> StagedViT:
    return make_vit("shapes_vit", img_size=24, embed_dim=24, num_heads=2, spread=0.2, **kwargs).to(device)


def pool_on(model: StagedViT):
    return make_pool(model, ShapesSource(DataConfig(), model).take("train", 40).images, heldout=8)


def test_a_pass_is_the_loss_and_its_gradient():
    model = vit("cpu")
    clean = pool_on(model).train
    noise = start_noise(model, 2.0, generator=generator(0)).requires_grad_(True)
    with frozen(model):
        look = noise_pass(model, noise, 0.3)
        assert type(look) is NoisePass
        told, gradient = look(clean), look.gradient()
        logits = model.logits_from_tokens(clean.tokens + noise)
        loss = (logits - clean.logits).norm(dim=1).mean() - 0.3 * noise.norm().log()
        loss.backward()
    gap = (logits.softmax(1) - clean.logits.softmax(1)).square().sum(1).mean()
    torch.testing.assert_close(told, torch.stack((loss, gap, noise.norm())).detach())
    torch.testing.assert_close(gradient, noise.grad)


def test_a_counter_counts_inside_the_block_only():
    meter = Meter(depth=2)
    with counting(meter):
        assert replay._counters == [meter]
    assert replay._counters == []


@pytest.mark.gpu
@needs_cuda
def test_a_recorded_search_is_the_search(monkeypatch):
    """The same noise but for TF32, at the cost of one gradient more."""
    model = vit("cuda", depth=3)
    pool = pool_on(model)
    cfg = NoiseConfig(limit=1.0, steps=60, batch=16, eps=None, lr=0.02, regularization=0.1)
    found = {}
    for kind in (NoisePass, RecordedPass):
        monkeypatch.setattr(encoder, "noise_pass", kind)
        with metered(model) as meter:
            found[kind] = learn_noise(model, pool, cfg, generator=generator(1)), meter.passes
    (plain, passes), (recorded, counted) = found.values()
    assert recorded.trace.loss[-1] < 0.7 * recorded.trace.loss[0]
    assert recorded.trace.norm[0] == plain.trace.norm[0]
    assert recorded.trace.loss == pytest.approx(plain.trace.loss, rel=2e-2)
    torch.testing.assert_close(recorded.noise, plain.noise, rtol=0.1, atol=0.05)
    last = 16 * 3  # the gradient at the last noise, which no update asks for
    assert counted == passes + last
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("objective", ["nullspace", "plain", "sam", "madry"])
def test_finetuning_goes_on_after_a_stop(tmp_path, objective):
    model = vit("cuda")
    source = ShapesSource(DataConfig(), model)
    noise = NoiseConfig(limit=1.0, steps=30, batch=8)
    cfg = FinetuneConfig(objective=objective, rounds=2, steps=4, batch=8, pool=16, heldout=8, checkpoint_every=2,
                         noise=noise, lr=1e-3, attack_steps=2)  # fmt: skip

    class Stopped(Exception):
        pass

    def stop(moment):
        if (moment.round, moment.phase, moment.step) == (1, "update", 3):
            raise Stopped

    with pytest.raises(Stopped):
        finetune_model(model, source, cfg, target=tmp_path / "tuned.safetensors", on_step=stop)
    done = finetune_model(model, source, cfg, target=tmp_path / "tuned.safetensors")
    whole = finetune_model(model, source, cfg)
    assert resolved(cfg, model.device).precision == "bfloat16"
    assert done.history[0].losses == whole.history[0].losses
    assert done.history[1].losses == pytest.approx(whole.history[1].losses, rel=0.05)


@pytest.mark.gpu
@needs_cuda
def test_the_nullspace_is_exact_in_float32():
    model = vit("cuda")
    assert torch.backends.cudnn.allow_tf32  # as torch has it
    images = ShapesSource(DataConfig(), model).take("val", 8).images
    noise = PatchNullspace(model).sample(8, peak=0.5, generator=generator(0)).to(images)
    before = model.embed(images)
    moved = model.embed(images + noise) - before
    assert moved.abs().max() < 1e-5 * before.abs().max()


@pytest.mark.gpu
@needs_cuda
def test_training_from_scratch(tmp_path):
    cfg = PretrainConfig(size=24, steps=6, batch=64, images=80, report_images=64)
    record = pretrain(replace(cfg, model="shapes_vit"), tmp_path / "w.safetensors", device="cuda", progress=False)
    assert record["hardware"]["gpu"]
    assert 0 < record["top1"]["val"] < 1
