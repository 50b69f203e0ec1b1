"""What every task gets from the base class: the step's gradient, its norm, the learning rate, the books."""

import math
from functools import partial

import pytest
import torch
from lightning import Callback

from lit_tfm.errors import UserError
from lit_tfm.optim.adamw import adamw
from lit_tfm.optim.schedules import linear
from lit_tfm.tasks.causal_lm import CausalLM
from lit_tfm.tasks.masked_lm import MaskedLM
from lit_tfm.tasks.nonfinite import NonFiniteLoss


def sgd(named_parameters, lr=0.1):
    optimizer = torch.optim.SGD([p for _, p in named_parameters], lr=lr)
    for group in optimizer.param_groups:
        group["initial_lr"] = lr
    return optimizer


class Watch(Callback):
    """Gradients and learning rates as the optimizer saw them."""

    def __init__(self):
        self.norms, self.rates = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()])))
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def blocks(tools, n=8):
    return [tools.block(12 + i, seed=i) for i in range(n)]


def test_a_model_of_the_wrong_kind_says_what_fits(tools):
    with pytest.raises(UserError, match=r"MaskedLM needs a model of kind Encoder, not Decoder; .*model="):
        tools.task(MaskedLM, "decoder")


def test_a_step_is_one_of_gradient_descent_on_the_mean(tools, keyed):
    """One step by hand: the mean loss over all targets of the batch, differentiated."""
    rows = blocks(tools)
    task = tools.task(CausalLM, "decoder", grad_clip=0.0)
    task.make_optimizer = sgd
    twin = tools.task(CausalLM, "decoder")
    tools.fit(task, rows, steps=1, batch_size=8, accumulate=3)
    output = twin(twin.collator()(keyed(rows)))
    mean = output.loss_sum / output.count
    mean.backward()
    for (name, trained), start in zip(task.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(trained, start - 0.1 * start.grad, msg=name)
    assert float(task.last_loss) == pytest.approx(float(mean.detach()))
    assert task.progress.targets == int(output.count)


@pytest.mark.parametrize("clip", [0.0, 0.05, 1e6])
def test_clipping_bounds_the_norm_of_the_mean_gradient(tools, clip):
    rows, watch = blocks(tools), Watch()
    task = tools.task(CausalLM, "decoder", grad_clip=clip)
    task.make_optimizer = partial(sgd, lr=0.0)
    tools.fit(task, rows, steps=2, batch_size=8, accumulate=2, callbacks=[watch])
    free = Watch()
    unclipped = tools.task(CausalLM, "decoder", grad_clip=0.0)
    unclipped.make_optimizer = partial(sgd, lr=0.0)
    tools.fit(unclipped, rows, steps=2, batch_size=8, callbacks=[free])
    assert free.norms[0] > 0.1
    bound = clip or math.inf
    assert watch.norms == pytest.approx([min(bound, norm) for norm in free.norms], rel=1e-5)


def test_the_learning_rate_is_that_of_the_middle_of_the_step(tools):
    watch = Watch()
    task = tools.task(CausalLM, "decoder")
    task.make_optimizer, task.schedule = partial(adamw, lr=0.01), partial(linear, warmup=0.0)
    tools.fit(task, blocks(tools), steps=4, batch_size=8, callbacks=[watch])
    assert watch.rates == pytest.approx([0.01 * (1 - x) for x in (0.125, 0.375, 0.625, 0.875)])


def test_a_loss_that_is_no_number_stops_before_the_weights_are_touched(tools):
    task = tools.task(CausalLM, "decoder")
    task.bad_steps = 1
    with torch.no_grad():
        task.model.embedding.weight.fill_(math.nan)
    others = {n: p.detach().clone() for n, p in task.named_parameters() if "embedding" not in n}
    with pytest.raises(NonFiniteLoss, match="at step 1; it appears first in the weight model"):
        tools.fit(task, blocks(tools), steps=2, batch_size=8)
    for name, before in others.items():
        assert torch.equal(dict(task.named_parameters())[name], before), name


def test_progress_is_kept_in_checkpoints(tools, tmp_path):
    task = tools.task(CausalLM, "decoder")
    trainer = tools.fit(task, blocks(tools), steps=2, batch_size=8)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    other = tools.task(CausalLM, "decoder")
    other.on_load_checkpoint(saved)
    assert other.progress.tokens == task.progress.tokens == 2 * sum(11 + i for i in range(8))
    assert other.progress.targets == task.progress.targets
    assert saved["lit_tfm"]["tokenizer"] == tools.tokenizer.hash


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_of_a_checkpoints_options_only_those_the_config_has_changed_are_replaced(tools, tmp_path, decay):
    """Prodigy and schedule-free optimizers keep what they have learnt among their options."""

    def make(named_parameters, weight_decay):
        optimizer = sgd(named_parameters)
        optimizer.param_groups[0] |= {"distance": 1e-6, "weight_decay": weight_decay}
        return optimizer

    class Estimate(Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            seen.append(dict(trainer.optimizers[0].param_groups[0]))
            trainer.optimizers[0].param_groups[0]["distance"] += 1.0

    def task(decay):
        made = tools.task(CausalLM, "decoder")
        made.make_optimizer = partial(make, weight_decay=decay)
        return made

    seen = []
    trainer = tools.fit(task(0.0), blocks(tools), steps=2, batch_size=8, callbacks=[Estimate()])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    seen.clear()
    tools.fit(task(decay), blocks(tools), steps=3, batch_size=8, callbacks=[Estimate()], resume=tmp_path / "a.ckpt")
    assert seen[0]["distance"] == 1e-6 + 2
    assert seen[0]["weight_decay"] == decay
