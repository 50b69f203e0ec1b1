"""The contract of a task: what is learnt, as a LightningModule.

A task owns four things, and a new one is a file that says them:

1. `architectures`: the model classes it can drive.
2. `collator()`: a small picklable object that turns examples into a batch: what is input, what is target, what noise
   is added. It runs in loader workers. `extra_tokens` says how many tokens beyond the block an example needs.
3. `step(batch) -> StepOutput`: the *sum* of the loss over the targets of this micro-batch and their number.
4. `report(means, stage)`: metrics that follow from the summed ones (perplexity from loss); and `monitor`, `mode`:
   what checkpoints, early stopping and sweeps look at.

The base class does the rest: it makes the gradient that of the mean over *all* targets of the global batch (over
micro-batches and ranks; Lightning alone averages averages), clips it, moves the learning rate along the schedule,
keeps the metrics exact, and shards itself under FSDP2.

Letters: B batch, T tokens, C model dim, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_tfm.data.facts import DataFacts
from lit_tfm.data.noise import number
from lit_tfm.errors import UserError
from lit_tfm.models.cost import flops_per_token
from lit_tfm.optim.muon import Muon, parts_of
from lit_tfm.optim.shares import on_this_machine
from lit_tfm.tasks.nonfinite import NonFiniteLoss, Verdict, origin
from lit_tfm.tasks.progress import Progress
from lit_tfm.tasks.sharding import shard
from lit_tfm.tasks.sums import Sums

Batch = dict[str, Any]
DROPOUT = 1000  # stream of the noise; collators count theirs from 0


class StepOutput(NamedTuple):
    """What a micro-batch contributes. A tuple, because FSDP2 finds the tensors of a forward's result by pytree."""

    loss_sum: Tensor  # () sum of the loss over targets
    count: Tensor  # () number of targets
    sums: dict[str, tuple[Tensor, Tensor]] = {}  # further metrics: name -> (numerator, denominator)
    training_loss_sum: Tensor | None = None  # () what is differentiated, where it differs (label smoothing)


class Task(LightningModule):
    """Base of all tasks; the module docstring is the contract.

    `optimizer` maps named parameters to an Optimizer, `schedule` maps progress in [0, 1] to a factor on the learning
    rate; `grad_clip` bounds the global gradient norm (0 = off). A step whose loss or gradient is not finite is skipped
    and counted; the run stops at the `bad_steps`-th in a row.
    """

    architectures: tuple[type[nn.Module], ...] = ()
    monitor = "val/loss"
    mode = "min"
    headline: tuple[str, ...] = ("loss",)  # metric names worth a row in the result table, most important first
    head_share = 1.0  # of the tokens, for how many logits over the vocabulary are computed (for counting FLOPs)

    def __init__(
        self,
        model: nn.Module,
        facts: DataFacts,
        optimizer: Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer],
        schedule: Callable[[float], float],
        grad_clip: float = 1.0,
        label_smoothing: float = 0.0,
        bad_steps: int = 5,
    ) -> None:
        super().__init__()
        if not isinstance(model, self.architectures):
            allowed = " or ".join(kind.__name__ for kind in self.architectures)
            raise UserError(
                f"{type(self).__name__} needs a model of kind {allowed}, not {type(model).__name__}; "
                "choose another model= or task="
            )
        self.model = model
        self.facts = facts
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.grad_clip = grad_clip
        self.label_smoothing = label_smoothing
        self.bad_steps = bad_steps
        self.progress = Progress(max_steps=1)
        self.seed = 0
        self.flops_per_token: float | None = None
        self._options: list[dict[str, Any]] = []  # of each group of the optimizer, as the config has them
        self._options_then: list[dict[str, Any]] | None = None  # as the checkpoint gone on from had them, if it says
        self.stop_wanted = False  # by a signal to this rank
        self.stop_agreed = False  # by a signal to some rank, known to all since the last optimizer step
        self.measured: dict[str, float] = {}  # the last validation's or test's metrics, "val/loss" ..., exact
        self._sums = {"val": Sums(), "test": Sums()}
        self.lags: bool | None = None  # whether what a step came to is read one step later; None: on accelerators
        self._step_sums: list[Tensor] = []  # per micro-batch (loss_sum, count) since the last optimizer step
        self._step_batches: list[tuple[Batch, int]] = []  # these micro-batches and their numbers
        self._verdict: Verdict | None = None  # of the last step, where it has not been read yet
        self._host_group: dist.ProcessGroup | None = None

    # ---- what a task says -------------------------------------------------------------------------------------

    def collator(self) -> Callable[[list[dict]], Batch]:
        raise NotImplementedError

    def step(self, batch: Batch) -> StepOutput:
        raise NotImplementedError

    def check_length(self, tokens: int, key: str) -> None:
        """Raises UserError where examples of `tokens` tokens, set by the config's `key`, are more than can be used."""
        room = self.model.config.max_length
        if tokens > room:
            raise UserError(
                f"{key}={tokens} is longer than the model's {room} positions; type model.max_length={tokens} "
                f"or {key}={room}"
            )

    def training_flops(self, tokens: int) -> float:
        """FLOPs of training per token that `n_tokens` counts, for examples of `tokens` tokens."""
        return flops_per_token(self.model.config, tokens, self.model.kind, head_share=self.head_share)

    def report(self, means: dict[str, float], stage: str) -> dict[str, float]:
        """Metrics of one pass, from the means over targets; tasks add what follows from them."""
        return means

    # ---- training ---------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> StepOutput:
        # Through __call__, so that FSDP2's hooks gather the root's parameters.
        return self.step(batch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.seed_dropout(batch_idx)

    def seed_dropout(self, micro_step: int) -> None:
        """Dropout as a function of the micro-step, as masks are: a resume needs no generator state, on no rank."""
        manual_seed(int(number(self.seed, micro_step, self.global_rank, stream=DROPOUT) * 2**53), self.device)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Tensors from pinned memory move while the host goes on; on a CPU nothing moves."""
        if not isinstance(batch, Mapping):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if device.type == "cpu":
            return batch
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output = self(batch)
        self._step_batches.append((batch, batch_idx))
        self._step_sums.append(torch.stack([output.loss_sum.detach().float(), output.count.float()]))
        # The sum, not the mean: the division by all targets of the global batch comes when all are known.
        return output.loss_sum if output.training_loss_sum is None else output.training_loss_sum

    def forget_step(self) -> None:
        """What was computed of the step at hand, as if it had not begun; weights and optimizer are those before it."""
        self.zero_grad(set_to_none=True)
        self._step_sums.clear()
        self._step_batches.clear()

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        """Called once an optimizer step, gradients complete: normalise, clip, set the learning rate.

        Nothing here waits for an accelerator: whether a step counts is decided on the device, by the optimizer, and
        what it came to is read when the next one is about to be taken.
        """
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        sharded = bool(grads) and isinstance(grads[0], DTensor)
        local = [g.to_local() if isinstance(g, DTensor) else g for g in grads]
        squares = torch.stack(torch._foreach_norm(local)).square().sum() if local else torch.zeros(())
        (loss, count, total), (tokens, seconds, stop) = self._agree(squares, sharded)
        self.settle()
        self.stop_agreed = bool(stop)

        # DDP and FSDP average over ranks and Lightning divides by the accumulation: undo both, divide by all targets.
        scale = self.trainer.world_size * self.trainer.accumulate_grad_batches / count.clamp(min=1.0)
        norm, mean = total.sqrt() * scale, loss / count.clamp(min=1.0)
        if self.grad_clip:
            scale = scale * (self.grad_clip / norm.clamp(min=1e-12)).clamp(max=1.0)
        torch._foreach_mul_(local, scale.to(local[0].dtype))

        self.last_loss, self.last_norm = mean, norm
        step = self.trainer.global_step + 1
        self._verdict = Verdict(torch.stack([mean, norm, count]), step, list(self._step_batches))
        self._step_batches.clear()
        if self._reads_later(optimizer, sharded):
            optimizer.found_inf = self._verdict.bad()
        elif not self.settle():
            # Without gradients an optimizer changes neither weights nor its own state.
            optimizer.zero_grad(set_to_none=True)
        self._set_learning_rate(optimizer, tokens)
        self._account(optimizer, step, tokens, seconds)

    def _reads_later(self, optimizer: Optimizer, sharded: bool) -> bool:
        """Whether the optimizer itself leaves a marked step out, by the protocol of torch's GradScaler."""
        lags = self.device.type != "cpu" if self.lags is None else self.lags
        return lags and not sharded and getattr(optimizer, "_step_supports_amp_scaling", False)

    def settle(self) -> bool:
        """Take note of what the last step came to, where that is still to be done; False where it was left out.

        Raises NonFiniteLoss when it was one too many in a row, which is no longer chance.
        """
        verdict, self._verdict = self._verdict, None
        if verdict is None:
            return True
        loss, norm, count = verdict.read()  # of all ranks: all decide the same
        progress = self.progress
        progress.targets += int(count)
        if math.isfinite(loss) and math.isfinite(norm):
            progress.skipped_in_a_row = 0
            return True
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        self.write({"train/skipped_steps": progress.skipped}, verdict.step)
        if progress.skipped_in_a_row >= max(1, self.bad_steps):
            what = f"training loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
            many = progress.skipped_in_a_row
            since = f", as in the {many - 1} before, none of which was taken" if many > 1 else ""
            raise NonFiniteLoss(f"{what} at step {verdict.step}{since}; {origin(self, verdict.batches)}")
        return False

    def _agree(self, squares: Tensor, sharded: bool) -> tuple[Tensor, list[float]]:
        """Over micro-batches and ranks: (loss, targets, squared norm) where they were computed, and on the host the
        sums of tokens, rank 0's clock, wanted stops.

        One small all-reduce a step, or two where the host would have to wait for the device. DDP's gradients are equal
        on all ranks; FSDP's are shards, whose squares add.
        """
        world = self.trainer.world_size
        squares = squares if sharded or world == 1 else squares / world
        sums = self._step_sums[0] if len(self._step_sums) == 1 else torch.stack(self._step_sums).sum(0)
        self._step_sums.clear()
        computed = torch.cat([sums, squares[None]])
        seconds = self.progress.elapsed() if self.trainer.is_global_zero else 0.0
        known = [sum(batch["n_tokens"] for batch, _ in self._step_batches), seconds, float(self.stop_wanted)]
        if world == 1:
            return computed, known
        if computed.device.type == "cpu":
            together = torch.cat([computed.double(), torch.tensor(known, dtype=torch.float64)])
            dist.all_reduce(together)
            return together[:3].to(computed.dtype), together[3:].tolist()
        dist.all_reduce(computed)
        self._host_group = self._host_group or dist.new_group(backend="gloo")
        facts = torch.tensor(known, dtype=torch.float64)
        dist.all_reduce(facts, group=self._host_group)
        return computed, facts.tolist()

    def _set_learning_rate(self, optimizer: Optimizer, tokens: float) -> None:
        # The middle of the step: neither the first nor the last step is spent at a learning rate of zero.
        ahead = tokens / 2 if self.progress.max_tokens else 0.0
        factor = self.schedule(self.progress.fraction(self.trainer.global_step + 0.5, ahead))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def _account(self, optimizer: Optimizer, step: int, tokens: float, seconds: float) -> None:
        """Keep the books of the step; the device is read only where something is printed."""
        progress = self.progress
        progress.tokens += int(tokens)
        progress.seconds = max(progress.seconds, seconds)
        if step % self.trainer.log_every_n_steps == 0 or step == 1:
            self.write(
                {
                    "train/loss": float(self.last_loss),
                    "train/grad_norm": float(self.last_norm),
                    "train/learning_rate": optimizer.param_groups[0]["lr"],
                },
                step,
            )

    def on_validation_start(self) -> None:
        self.settle()

    def on_train_end(self) -> None:
        self.settle()

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Scalars to every logger, beside the tokens and seconds they were reached with.

        Straight to the loggers: `self.log` costs more than the rest of a small model's step.
        """
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=step)

    # ---- evaluation -------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, stage: str) -> None:
        output = self(batch)
        sums = self._sums[stage]
        sums.add("loss", output.loss_sum, output.count)
        for name, (top, bottom) in output.sums.items():
            sums.add(name, top, bottom)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, stage: str) -> None:
        metrics = {f"{stage}/{k}": float(v) for k, v in self.report(self._sums[stage].means(), stage).items()}
        self._sums[stage].reset()
        self.measured = metrics
        # For Lightning's own callbacks, such as early stopping. `self.log` does just that, and takes 0.1 s for it.
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        self.write(metrics, self.trainer.global_step)

    # ---- set-up -----------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning's, fifty times a step; nn.Module would ask whether it is a parameter
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def configure_optimizers(self) -> Optimizer:
        optimizer = self.make_optimizer(list(self.named_parameters()))
        if isinstance(optimizer, Muon):
            optimizer.parts = parts_of(self)
            if self.device_mesh is None and dist.is_initialized():
                # DDP: weights and gradients are the same everywhere.
                optimizer.replicas = on_this_machine(self.trainer.num_nodes)
        own = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in optimizer.param_groups]
        self._options = own
        return optimizer

    def on_train_start(self) -> None:
        """Where the config was another one at the checkpoint, its options win over those that came with it.

        Only what the config has changed: some optimizers keep what they have learnt among their options (Prodigy).
        """
        groups = self.trainer.optimizers[0].param_groups
        before = self._options_then or [{}] * len(groups)
        for group, then, now in zip(groups, before, self._options, strict=True):
            group.update({key: value for key, value in now.items() if key not in then or then[key] != value})

    def configure_model(self) -> None:
        """Shard under FSDP2."""
        if self.device_mesh is None or getattr(self, "_sharded", False):
            return
        shard(self, self.model, self.device_mesh["data_parallel"])
        self._sharded = True

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        self.settle()
        kept = {"progress": self.progress.state(), "tokenizer": self.facts.tokenizer.hash, "options": self._options}
        checkpoint["lit_tfm"] = kept

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.progress.restore(checkpoint["lit_tfm"]["progress"])
        self._options_then = checkpoint["lit_tfm"].get("options")


def manual_seed(seed: int, device: torch.device) -> None:
    """What `torch.manual_seed` does, for this device only: its rounds for absent ones take longer than a small step."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
