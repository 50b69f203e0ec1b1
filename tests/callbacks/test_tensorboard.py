"""What TensorBoard makes of our events: order of groups, one HParams table for unlike runs, curves after a resume."""

import json
import os
import signal
from collections import Counter

import pytest
from lightning import Callback
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS, STATUS_UNKNOWN, ListSessionGroupsRequest
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from lit_tfm import config
from lit_tfm.callbacks.layout import TITLE, Layout, charts
from lit_tfm.callbacks.tensorboard import best_tag, flatten, tag, tensorboard
from lit_tfm.train import train

MLM = ["experiment=bert_small", "data.block_size=32", "data.batch_size=8", "tokenizer.vocab_size=400"]
QUICK = ["trainer.max_steps=6", "trainer.val_every=2", "trainer.log_every=1", "data.val_limit=8", "budget=null"]


def context(folder) -> base_plugin.TBContext:
    events = EventMultiplexer()
    events.AddRunsFromDirectory(str(folder)).Reload()
    return base_plugin.TBContext(data_provider=MultiplexerDataProvider(events, str(folder)), logdir=str(folder))


def table(folder):
    """(experiment, rows) of the HParams page."""
    tb = Context(context(folder))
    ctx = RequestContext()
    found = tb.hparams_metadata(ctx, "")
    experiment = tb.experiment_from_metadata(ctx, "", True, found, [])
    every = [STATUS_UNKNOWN, STATUS_SUCCESS]
    request = ListSessionGroupsRequest(start_index=0, slice_size=100, allowed_statuses=every, include_metrics=True)
    return experiment, Handler(ctx, tb, "", request).run().session_groups


def test_the_alphabet_of_the_groups_is_their_importance():
    names = ["test/loss", "speed/tflops", "val/loss", "train/learning_rate", "val/accuracy", "train/loss"]
    shown = sorted([*map(tag, names), best_tag("val/accuracy")])
    assert shown == [
        "best/accuracy",
        "loss/train",
        "loss/val",
        "metrics/accuracy",
        "optimizer/learning_rate",
        "speed/tflops",
        "test/loss",
    ]
    assert tag("mine/own") == "mine/own"


def test_unlike_runs_share_one_table(tmp_path):
    """TensorBoard takes all columns from the first run that declares an experiment; ours declare none."""
    runs = {
        "lm": ({"seed": 1, "model/d_model": 32, "task/rate": 0.3}, {"val/loss": 3.0}),
        "classifier": ({"seed": 1, "model/d_model": 64, "task/pooling": "max"}, {"val/loss": 0.4, "val/accuracy": 0.9}),
        "crashed": ({"seed": 1, "model/d_model": 128, "task/deep": True}, {}),
    }
    for name, (params, metrics) in runs.items():
        board = tensorboard(tmp_path / name)
        board.log_hyperparams(params)
        board.log_metrics({best_tag(key): value for key, value in metrics.items()}, 5)
        if name == "lm":
            board.log_success()
        board.finalize("success")
    experiment, rows = table(tmp_path)
    assert {info.name for info in experiment.hparam_infos} == {
        "seed",
        "model/d_model",
        "task/rate",
        "task/pooling",
        "task/deep",
    }
    assert experiment.hparam_infos[0].name == "model/d_model"  # what differs comes first
    assert [info.name.tag for info in experiment.metric_infos] == ["best/accuracy", "best/loss"]
    found = {row.name: row for row in rows}
    assert found.keys() == runs.keys()
    assert {m.name.tag: m.value for m in found["classifier"].metric_values} == pytest.approx(
        {"best/accuracy": 0.9, "best/loss": 0.4}
    )
    assert not found["crashed"].metric_values  # and yet it has its row
    assert found["lm"].sessions[0].status == STATUS_SUCCESS
    assert found["crashed"].sessions[0].status == STATUS_UNKNOWN


def test_hyperparameters_are_flat_and_have_no_holes():
    given = {"model": {"d_model": 4, "bias": None, "_target_": "x"}, "list": [1, 2], "seed": 1}
    assert flatten(given) == {"model/d_model": 4, "list": "1 2", "seed": 1}


class StopAt(Callback):
    """Asks this process to stop, as a person or a cluster would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def points(folder) -> dict[str, list[int]]:
    """Steps of everything that has curves or pages, read as TensorBoard reads it."""
    events = EventMultiplexer(tensor_size_guidance=dict.fromkeys(("scalars", "images", "text"), 0))
    events.AddRun(str(folder), "run").Reload()
    found = {tag: [event.step for event in events.Tensors("run", tag)] for tag in events.Runs()["run"]["tensors"]}
    return {tag: steps for tag, steps in found.items() if not tag.startswith(("_hparams_", "custom_scalars"))}


@pytest.fixture
def quick(text_folder) -> list[str]:
    return [*MLM, f"data.path={text_folder}", *QUICK]


def test_a_stopped_and_resumed_run_goes_on_with_its_curves(run, quick, tmp_path, session_cache):
    options = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "trainer.precision=32"]
    options += ["trainer.accelerator=cpu", f"cache_dir={session_cache}", *quick, f"output_dir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as stopped:
        train(config.compose(options), quiet=True, callbacks=[StopAt(3)])
    assert stopped.value.code == 128 + signal.SIGTERM
    assert max(points(tmp_path / "run")["loss/train"]) <= 4
    train(config.compose([f"resume={tmp_path / 'run'}"]), quiet=True)
    found = points(tmp_path / "run")
    assert found["loss/train"] == [1, 2, 3, 4, 5, 6]
    assert found["loss/val"] == found["best/loss"] == [2, 4, 6]
    assert found["samples/text_summary"] == [2, 4, 6]
    assert not {name: steps for name, steps in found.items() if len(set(steps)) < len(steps) or sorted(steps) != steps}
    _, [row] = table(tmp_path)
    assert row.sessions[0].status == STATUS_SUCCESS


def test_what_a_killed_part_wrote_beyond_its_checkpoint_is_gone(run, quick, tmp_path):
    whole = run(*quick, "++callbacks.checkpoints.every=3")
    before = points(whole.folder)
    again = run(*quick, f"resume={whole.folder / 'checkpoints' / 'step-3.ckpt'}")
    assert again.folder == whole.folder
    found = points(whole.folder)
    assert found["loss/train"] == before["loss/train"] == [1, 2, 3, 4, 5, 6]
    assert not [name for name, steps in found.items() if max(Counter(steps).values()) > 1]


def test_the_layout_joins_the_runs_of_all_tasks(tmp_path, fit, make_task):
    for name in ("masked_lm", "classification"):
        fit(name, tmp_path / name, Layout())
    plugin = CustomScalarsPlugin(context(tmp_path))
    [category] = json.loads(plugin.layout_impl(RequestContext(), ""))["category"]
    assert category["title"] == TITLE
    titles = [chart["title"] for chart in category["chart"]]
    assert titles[0] == "loss: train and val"
    assert {"accuracy", "macro f1", "word perplexity", "learning rate", "gradient norm", "tokens per second"} <= {
        *titles
    }
    assert len(titles) == len(set(titles))
    assert category["chart"][0]["multiline"]["tag"] == ["loss/train$", "loss/val$"]
    assert charts(make_task("causal_lm"))["learning rate"][1] == ["optimizer/learning_rate$"]
