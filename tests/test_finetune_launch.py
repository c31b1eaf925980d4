"""A finetuning on several processes that a notebook starts."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import suppress

import pytest
from safetensors.torch import load_file

NOTEBOOK = """
    import sys
    from pathlib import Path
    import accelerate
    import torch
    from nslib.config import DataConfig, FinetuneConfig, NoiseConfig
    from nslib.data.source import open_source
    from nslib.finetune.rounds import finetune_model
    from nslib.models import load_model
    from nslib.machine.processes import processes

    folder, small = Path(sys.argv[1]), dict(img_size=24, embed_dim=24, depth=2, num_heads=2)
    data = DataConfig()
    noise = NoiseConfig(steps=3, eps=None, batch=8)
    cfg = FinetuneConfig(precision="float32", rounds=1, steps=2, batch=8, pool=16, heldout=8, noise=noise)

    def train(target):
        with processes("cpu") as (share, device):
            assert share.count == 2
            model = load_model(weights="random", device=device, **small)
            finetune_model(model, open_source(data, model), cfg, target=target, share=share)

    torch.set_num_threads(2)
    big = torch.rand(600, 600)
    (big @ big).sum()  # in threads that the children will not have
    accelerate.notebook_launcher(train, (folder / "both.safetensors",), num_processes=2, use_port=sys.argv[2])

    model = load_model(weights="random", **small)
    done = finetune_model(model, open_source(data, model), cfg, target=folder / "both.safetensors")
    print("processes", done.record["processes"])
    done = finetune_model(model, open_source(data, model), cfg, target=folder / "alone.safetensors")
    print("processes", done.record["processes"])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of a notebook are forked")
def test_notebook_that_has_computed_starts_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")}
    notebook = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(NOTEBOOK), str(tmp_path), str(port)], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment | {"OMP_NUM_THREADS": "2"},  # else accelerate sets the threads of its own accord
    )  # fmt: skip
    try:
        told, errors = notebook.communicate(timeout=100)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(notebook.pid, signal.SIGKILL)  # its children, should they hang
    assert notebook.returncode == 0, errors[-3000:]
    assert [line for line in told.splitlines() if "processes" in line] == ["processes 2", "processes 1"]
    both, alone = (load_file(tmp_path / f"{name}.safetensors") for name in ("both", "alone"))
    assert max((both[n] - alone[n]).abs().max().item() for n in alone) < 1e-5
