"""What torch does beside its numbers: kernels that MKL chooses, TF32, and the GPU of each process."""

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_vit

from nslib.machine import processes
from nslib.nullspace.passes import NoisePass, RecordedPass, noise_pass
from nslib.vit.staged import StagedViT

WATCHED = """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            for given in args:
                if isinstance(given, torch.Tensor):
                    print(function.overloadpacket.__name__, given.dtype, given.numel())
            return function(*args, **kwargs or {})

    with Watched():
        import nslib.vit
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kernels_of_mkl_are_chosen_by_one_thread():
    first = python(WATCHED).splitlines()
    for function in ("sqrt", "exp", "log", "tanh", "sin"):
        assert {f"{function} torch.{kind} 1" for kind in ("float32", "float64")} <= set(first)


@pytest.mark.parametrize(
    ("by_user", "left"),
    [
        ("pass", "ieee"),
        ("products.allow_tf32 = True", "tf32"),
        ("torch.set_float32_matmul_precision('medium')", "tf32"),
        ("products.fp32_precision = 'tf32'", "tf32"),
        ("torch.backends.fp32_precision = 'tf32'", "tf32"),
        ("torch.backends.mkldnn.matmul.fp32_precision = 'bf16'", "ieee"),
    ],
)
def test_tf32_is_for_the_search_alone_however_it_is_set(by_user, left):
    """In torch's older and newer way, of which the older refuses to be read after some uses of the newer."""
    code = f"""
        import torch
        from nslib.nullspace.passes import _tf32
        products = torch.backends.cuda.matmul
        {by_user}
        with _tf32():
            print(products.fp32_precision)
        print(products.fp32_precision)
    """
    assert python(code).split() == ["tf32", left]


class OwnViT(StagedViT):
    def encode(self, tokens):
        return super().encode(tokens * float(tokens.new_ones(1)))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.vit.blocks[0].register_forward_hook(lambda *_: None),
        lambda model: model.vit.set_grad_checkpointing(),
        lambda model: setattr(model, "__class__", OwnViT),
    ],
    ids=["hook", "checkpointing", "class"],
)
def test_what_python_does_in_a_model_is_not_recorded_on_a_gpu(change):
    model, noise = tiny_vit(), SimpleNamespace(is_cuda=True)
    assert type(noise_pass(model, noise, 0.0)) is RecordedPass
    change(model)
    assert type(noise_pass(model, noise, 0.0)) is NoisePass


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert processes._own_gpu() == 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match=r"process 1 of this machine has no GPU of its own, there are 1: .*device cpu"):
        processes._own_gpu()
