"""Training steps "on a GPU" without one: the product's own task on fake tensors, which have a device but no numbers.

    python tests/support/fake_cuda.py LIBRARY < cases.json

A case is {"words": command line, "break": what to spoil}; each prints a line of json: what went wrong (null: nothing),
and the products of matrices by dtype. torch's fake tensors refuse what a GPU would refuse or wait for: operands on two
devices, and every number that the host asks the device for.
"""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")
TORCH = Path(importlib.util.find_spec("torch").submodule_search_locations[0])


def compile_library(path: Path) -> None:
    given = ["-std=c++20", "-shared", "-fPIC", f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu"]
    subprocess.run(["g++", SOURCE, "-o", path, *given], check=True)


def load_library(path: Path) -> None:
    """Before torch is imported: that asks for the hooks once, and keeps what it found."""
    for name in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(TORCH / "lib" / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(path))


def main(library: Path, cases: list[dict]) -> None:
    load_library(library)
    from types import SimpleNamespace

    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from lit_tfm import config
    from lit_tfm.build import build_data, build_task
    from lit_tfm.nn.positions import Rotary
    from lit_tfm.tasks.nonfinite import Verdict

    # What the build for CPUs has no such functions for; and the one read of a step, which comes a step late.
    torch.cuda.is_bf16_supported = lambda **_: True
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.Event = lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    Verdict.read = lambda self: [2.0, 1.0, 10.0]
    cuda = torch.device("cuda", 0)

    class Products(TorchDispatchMode):
        """Dtypes of what layers multiply. Attention is asked at its door: without kernels torch spells it out."""

        seen = Counter()

        def note(self, tensor: torch.Tensor) -> None:
            self.seen[str(tensor.dtype).removeprefix("torch.")] += 1

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket.__name__ in ("mm", "addmm"):
                self.note(args[1])
            return function(*args, **(kwargs or {}))

    attention = torch.nn.functional.scaled_dot_product_attention

    def attend(*qkv, **options):
        for tensor in qkv:
            Products.note(Products, tensor)
        return attention(*qkv, **options)

    torch.nn.functional.scaled_dot_product_attention = attend

    def move(task: nn.Module) -> None:
        """What is registered, as `task.to` does: fake tensors can't be swapped in place."""
        for module in task.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.detach().to(cuda))
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer.to(cuda)
        task._device = cuda

    def spoil(task: nn.Module, how: str | None) -> None:
        if how == "read":
            plain = task.training_loss

            def training_loss(hidden, labels):
                hidden.sum().item()
                return plain(hidden, labels)

            task.training_loss = training_loss
        elif how == "device":
            for rotary in (module for module in task.modules() if isinstance(module, Rotary)):
                rotary.cos = rotary.cos.cpu()

    def run(case: dict) -> dict:
        cfg = config.compose(case["words"])
        config.resolve(cfg)
        data = build_data(cfg)
        data.connect(build_task(cfg, data.facts).collator(), cfg.seed)
        batches = iter(data.train_dataloader())
        bf16 = str(cfg.trainer.precision) != "32"
        Products.seen.clear()
        with FakeTensorMode() as fake, Products():
            task = build_task(cfg, data.facts)
            move(task)
            spoil(task, case.get("break"))
            task.train()
            optimizer = task.configure_optimizers()
            trainer = {"world_size": 1, "accumulate_grad_batches": 1, "is_global_zero": True, "global_rank": 0}
            trainer |= {"loggers": [], "log_every_n_steps": 1000, "num_nodes": 1, "global_step": 5}
            task.trainer = SimpleNamespace(**trainer)
            for step in range(2):
                batch = {k: fake.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in next(batches).items()}
                batch = task.transfer_batch_to_device(batch, cuda, 0)
                task.on_train_batch_start(batch, step)
                with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                    loss = task.training_step(batch, step)
                loss.backward()
                task.configure_gradient_clipping(optimizer)
                optimizer.step()
                optimizer.zero_grad()
            if cfg.data.get("label"):
                return dict(Products.seen)  # torchmetrics waits, once for each batch of a validation
            task.eval()
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                task.validation_step(batch, 0)
            return dict(Products.seen)

    for case in cases:
        wrong, products = None, {}
        try:
            products = run(case)
        except Exception as error:
            where = [f"{line.filename}:{line.lineno}" for line in traceback.extract_tb(error.__traceback__)]
            ours = [place for place in where if "lit_tfm" in place.partition("tests")[0]]
            wrong = f"{type(error).__name__}: {error} ({', '.join(ours[-2:])})"
        print(json.dumps({"wrong": wrong, "products": products}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.load(sys.stdin))
    os._exit(0)  # the autograd thread of a device that is none cannot be ended
