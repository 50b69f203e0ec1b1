"""TensorBoard as people look at it: a real process over real runs of all architectures, seen through a browser.

What the pages show is asserted on TensorBoard's own HTTP interfaces, that they show it on the browser's pictures.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from lit_tfm import config
from lit_tfm.train import train

TINY = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "trainer.precision=32", "trainer.accelerator=cpu"]
QUICK = ["trainer.max_steps=8", "trainer.val_every=4", "trainer.log_every=1", "data.val_limit=16", "budget=null"]
BLOCKS = ["data.block_size=32", "data.batch_size=8", "tokenizer.vocab_size=400"]
# Texts and labels of somebody who does not wish us well.
EVIL = "<script>window.hacked=1</script> <img src=x onerror=window.hacked=1> | **b** [l](javascript:window.hacked=1)"
LABELS = ("<b>ham</b>", "spam|eggs")


class Board:
    """A TensorBoard process over a folder."""

    def __init__(self, folder: Path) -> None:
        program = [sys.executable, "-m", "tensorboard.main", "--logdir", folder.name, "--port", "0"]
        self.process = subprocess.Popen(
            program,
            cwd=folder.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.address = next(
            found.group() for line in self.process.stderr if (found := re.search(r"http://[\w.:]+/", line))
        ).rstrip("/")

    def get(self, path: str, **query: str):
        """JSON of a plugin's route, else bytes."""
        with urlopen(f"{self.address}/data/{path}?{urlencode(query)}", timeout=30) as answer:
            content = answer.read()
            return json.loads(content) if "json" in answer.headers["Content-Type"] else content

    def post(self, path: str, content: dict) -> dict:
        request = Request(f"{self.address}/data/{path}", json.dumps(content).encode())
        request.add_header("Content-Type", "application/json")
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def wait(self, runs: int) -> None:
        """Until it has read that many runs, and found out that there is something to project."""
        until = time.monotonic() + 60
        while len(self.get("runs")) < runs or not self.get("plugins_listing")["projector"]["enabled"]:
            assert time.monotonic() < until, self.get("runs")
            time.sleep(0.2)

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)  # its data server with it
        self.process.communicate()


@pytest.fixture(scope="session")
def outputs(tmp_path_factory, session_cache, text_folder) -> Path:
    """Seven runs: masked LM twice, causal LM killed and resumed, span corruption, a classifier of each architecture."""
    folder = tmp_path_factory.mktemp("looking") / "outputs"
    reviews = folder.parent / "reviews.csv"
    rows = [f'"{i} {EVIL}","{LABELS[i % 2]}"' for i in range(40)]
    reviews.write_text("\n".join(["text,label", *rows]) + "\n")
    text, csv = [f"data.path={text_folder}", *BLOCKS], [f"data.path={reviews}", "data=csv", "tokenizer=byte"]
    classify = [
        "task=classification",
        *csv,
        "data.batch_size=8",
        "test=true",
        "data.holdout={validation: 0.2, test: 0.2}",
    ]
    runs = {
        "masked/1": ["experiment=bert_small", *text],
        "masked/2": ["experiment=bert_small", *text, "seed=2", "optimizer.lr=0.005"],
        "causal/resumed": ["experiment=gpt_small", *text, "++callbacks.checkpoints.every=3"],
        "spans/1": ["experiment=t5_small", *text],
        "classes/bert": ["model=bert_tiny", *classify],
        "classes/gpt": ["model=gpt_tiny", *classify],
        "classes/t5": ["model=t5_tiny", *classify],
    }
    for name, options in runs.items():
        given = [*TINY, *QUICK, f"cache_dir={session_cache}", *options]
        train(config.compose([*given, f"output_dir={folder / name}"]), quiet=True)
    checkpoint = folder / "causal/resumed/checkpoints/step-3.ckpt"
    train(config.compose([f"resume={checkpoint}"]), quiet=True)
    return folder


@pytest.fixture(scope="session")
def board(outputs):
    running = Board(outputs)
    running.wait(runs=7)
    yield running
    running.close()


def look(chromium, board, page: str, *texts: str):
    """The page once it shows the texts, after its pictures have been drawn."""
    tab = chromium.open(f"{board.address}/#{page}")
    tab.wait_for_text(*texts)
    return tab


def test_scalars_put_what_is_important_first(board, chromium, tmp_path):
    tags = board.get("plugin/scalars/tags")
    assert len(tags) == 7
    groups = sorted({name.split("/")[0] for run in tags.values() for name in run})
    assert groups == ["best", "loss", "metrics", "optimizer", "speed", "test"]
    assert {"best/accuracy", "best/loss"} <= set(tags["classes/gpt"])
    page = look(chromium, board, "timeseries", "best/loss", "loss/train", "loss/val", "causal/resumed")
    shown = page.text().replace("\n", "")
    order = [shown.index(name) for name in ("best/accuracy", "best/loss", "loss/train", "loss/val")]
    assert order == sorted(order)
    assert page.colours(page.picture(tmp_path / "scalars.png", settle=1.0)) > 200
    assert page.troubles == []
    page.close()


def test_a_resumed_run_has_no_point_twice(board):
    for name in board.get("plugin/scalars/tags")["causal/resumed"]:
        steps = [step for _, step, _ in board.get("plugin/scalars/scalars", run="causal/resumed", tag=name)]
        assert steps == sorted(set(steps)), name
    losses = board.get("plugin/scalars/scalars", run="causal/resumed", tag="loss/train")
    assert [step for _, step, _ in losses] == [1, 2, 3, 4, 5, 6, 7, 8]
    pictures = board.get("plugin/images/images", run="causal/resumed", tag="pictures/attention_decoder", sample="0")
    assert [picture["step"] for picture in pictures] == [4, 8]


def test_custom_scalars_show_both_losses_in_one_chart(board, chromium, tmp_path):
    [category] = board.get("plugin/custom_scalars/layout")["category"]
    chart = category["chart"][0]
    found = {}
    for pattern in chart["multiline"]["tag"]:
        found |= board.get("plugin/custom_scalars/scalars", run="masked/1", tag=pattern)["tag_to_events"]
    assert {name: len(points) for name, points in found.items()} == {"loss/train": 8, "loss/val": 2}
    titles = ["loss: train and val", "learning rate", "gradient norm", "tokens per second", "word perplexity", "mcc"]
    page = look(chromium, board, "custom_scalars", "At a glance", *titles)
    page.wait_for_text("Matches (14)")  # both losses of seven runs
    assert page.colours(page.picture(tmp_path / "custom.png", settle=1.0)) > 200
    assert page.troubles == []
    page.close()


def test_texts_are_shown_as_they_are_and_run_nothing(board, chromium, tmp_path):
    tags = board.get("plugin/text/tags")
    assert all(names == ["samples/text_summary"] for names in tags.values())
    assert len(tags) == 7
    shown = board.get("plugin/text/text", run="classes/bert", tag="samples/text_summary")
    assert all("<td>" in event["text"] and "<script" not in event["text"] for event in shown)
    page = look(chromium, board, "text", "answered", EVIL, "predicted", LABELS[0], LABELS[1])
    assert page.js("window.hacked") is None
    assert not page.exists("script", has="hacked")
    assert not page.exists("img[onerror]")
    assert not page.exists("a[href^=javascript]")
    assert page.colours(page.picture(tmp_path / "text.png")) > 50
    assert page.troubles == []
    page.close()


def test_pictures_of_attention_and_confusion(board, chromium, tmp_path):
    tags = board.get("plugin/images/tags")
    attention = {"masked/1": ["encoder"], "causal/resumed": ["decoder"], "spans/1": ["cross", "decoder", "encoder"]}
    for run, kinds in attention.items():
        assert sorted(tags[run]) == [f"pictures/attention_{kind}" for kind in kinds]
    assert {"pictures/confusion_val", "pictures/confusion_test", "pictures/attention_cross"} <= set(tags["classes/t5"])
    [first, *_] = board.get("plugin/images/images", run="spans/1", tag="pictures/attention_cross", sample="0")
    picture = Image.open(io.BytesIO(board.get(f"plugin/images/individualImage?{first['query']}&")))
    assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    page = look(chromium, board, "images", "pictures/attention_cross", "pictures/attention_decoder")
    assert page.colours(page.picture(tmp_path / "images.png", settle=1.0)) > 200
    assert page.troubles == []
    page.close()


def test_the_projector_names_its_points(board, chromium, tmp_path, outputs):
    assert sorted(board.get("plugin/projector/runs")) == sorted(board.get("runs"))
    info = board.get("plugin/projector/info", run="causal/resumed")
    [embedding] = info["embeddings"]
    points, width = embedding["tensorShape"]
    assert width == 32
    names = board.get("plugin/projector/metadata", run="causal/resumed", name="tokens").decode().splitlines()
    assert len(names) == 1 + points
    vectors = board.get("plugin/projector/tensor", run="causal/resumed", name="tokens")
    assert len(vectors) == 4 * points * width
    page = look(chromium, board, "projector", "Points:", "Label by", "tokens", "Dimension:")
    assert page.colours(page.picture(tmp_path / "projector.png", settle=2.0)) > 200
    assert page.troubles == []
    page.close()


def test_hparams_of_runs_of_all_tasks_stand_in_one_table(board, chromium, tmp_path):
    experiment = board.post("plugin/hparams/experiment", {"experimentName": ""})
    assert [info["name"]["tag"] for info in experiment["metricInfos"]][:4] == [
        "best/accuracy",
        "best/loss",
        "loss/train",
        "loss/val",
    ]
    names = [info["name"] for info in experiment["hparamInfos"]]
    assert names[0].startswith("chosen/")  # they differ, so they come first
    assert {"data/block_size", "data/holdout/validation", "seed", "optimizer/lr"} <= set(names)
    request = {"startIndex": 0, "sliceSize": 100, "colParams": [], "allowedStatuses": ["STATUS_SUCCESS"]}
    rows = board.post("plugin/hparams/session_groups", request)["sessionGroups"]
    assert len(rows) == 7
    for row in rows:
        values = {metric["name"]["tag"]: metric["value"] for metric in row["metricValues"]}
        assert values["best/loss"] > 0
        assert ("best/accuracy" in values) == row["name"].startswith("classes/")
    page = look(chromium, board, "hparams", "chosen/data", "best/loss", "classes/t5", "spans/1")
    assert page.colours(page.picture(tmp_path / "hparams.png")) > 50
    assert page.troubles == []
    page.close()
