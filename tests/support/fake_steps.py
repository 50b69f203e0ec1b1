"""Training steps "on a GPU" without one: the product's own task on fake tensors.

torch's fake tensors refuse what a GPU would refuse or wait for: operands on two devices, and every number that the host
asks the device for. In a process made by fake_cuda.py.
"""

import traceback
from collections import Counter
from types import SimpleNamespace

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_tfm import config
from lit_tfm.build import build_data, build_task
from lit_tfm.nn.positions import Rotary
from lit_tfm.tasks.base import Task
from lit_tfm.tasks.nonfinite import Verdict

CUDA = torch.device("cuda", 0)
TRAINER = {"world_size": 1, "accumulate_grad_batches": 1, "is_global_zero": True, "global_rank": 0, "num_nodes": 1}
TRAINER |= {"loggers": [], "log_every_n_steps": 1000, "global_step": 5}
STEPS = 2

# What a build for CPUs has no such functions for; and the one read of a step, which comes a step late.
torch.cuda.is_bf16_supported = lambda **_: True
torch.cuda.amp.common.amp_definitely_not_available = lambda: False
torch.cuda.Event = lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None)
Verdict.read = lambda self: [2.0, 1.0, 10.0]


class Products(TorchDispatchMode):
    """Counts by dtype what layers multiply. Attention is asked at its door: without kernels torch spells it out."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: Counter[str] = Counter()

    def note(self, tensor: Tensor) -> None:
        self.dtypes[str(tensor.dtype).removeprefix("torch.")] += 1

    def __enter__(self) -> "Products":
        self.attention = torch.nn.functional.scaled_dot_product_attention
        torch.nn.functional.scaled_dot_product_attention = self.attend
        return super().__enter__()

    def __exit__(self, *error) -> None:
        torch.nn.functional.scaled_dot_product_attention = self.attention
        super().__exit__(*error)

    def attend(self, *qkv: Tensor, **options) -> Tensor:
        for tensor in qkv:
            self.note(tensor)
        return self.attention(*qkv, **options)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "addmm"):
            self.note(args[1])
        return function(*args, **(kwargs or {}))


def outcome(case: dict) -> dict:
    """{"words": command line, "break": what to spoil} -> what went wrong (None: nothing), and products by dtype."""
    cfg = config.compose(case["words"])
    config.resolve(cfg)
    products = Products()
    try:
        follow(cfg, products, case.get("break"))
    except Exception as error:
        where = [f"{line.filename}:{line.lineno}" for line in traceback.extract_tb(error.__traceback__)]
        return {"wrong": f"{type(error).__name__}: {error} ({', '.join(where[-8:])})", "products": products.dtypes}
    return {"wrong": None, "products": products.dtypes}


def follow(cfg: DictConfig, products: Products, spoilt: str | None) -> None:
    """Some steps of training and one of validation, from a batch in the host's memory to new weights."""
    data = build_data(cfg)
    data.connect(build_task(cfg, data.facts).collator(), cfg.seed)
    batches = iter(data.train_dataloader())
    cast = {"device_type": "cuda", "dtype": torch.bfloat16, "enabled": str(cfg.trainer.precision) != "32"}
    with FakeTensorMode() as fake, products:
        task = build_task(cfg, data.facts)
        move(task)
        spoil(task, spoilt)
        task.train()
        optimizer = task.configure_optimizers()
        task.trainer = SimpleNamespace(**TRAINER)
        for step in range(STEPS):
            batch = {k: fake.from_tensor(v) if isinstance(v, Tensor) else v for k, v in next(batches).items()}
            batch = task.transfer_batch_to_device(batch, CUDA, 0)
            task.on_train_batch_start(batch, step)
            with torch.autocast(**cast):
                loss = task.training_step(batch, step)
            loss.backward()
            task.configure_gradient_clipping(optimizer)
            optimizer.step()
            optimizer.zero_grad()
        if data.facts.labels is None:  # with labels torchmetrics waits, once for each batch of a validation
            task.eval()
            with torch.no_grad(), torch.autocast(**cast):
                task.validation_step(batch, 0)


def move(task: Task) -> None:
    """What is registered, as `task.to` does: fake tensors can't be swapped in place."""
    for module in task.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().to(CUDA))
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.to(CUDA)
    task._device = CUDA


def spoil(task: Task, how: str | None) -> None:
    """A host that reads, or a table left behind."""
    if how == "read":
        plain = task.training_loss
        task.training_loss = lambda hidden, labels: plain(hidden * hidden.sum().item(), labels)
    elif how == "device":
        for rotary in (module for module in task.modules() if isinstance(module, Rotary)):
            rotary.cos = rotary.cos.cpu()
