"""Looking at a sharded model: under FSDP2 the pictures are those of one process, and nothing waits for a rank."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_tfm.callbacks.gathered import gathered, whole

OPTIONS = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "data.block_size=32", "data.batch_size=8"]
OPTIONS += ["data.val_limit=8", "tokenizer.vocab_size=400", "trainer.precision=32", "trainer.accelerator=cpu"]
OPTIONS += ["trainer.max_steps=2", "trainer.val_every=1", "trainer.log_every=1", "budget=null"]


def test_an_unsharded_task_is_asked_as_it_is(make_task):
    task = make_task("causal_lm")
    assert gathered(task, lambda: 7) == 7
    assert whole(task.model.embedding.weight) is not task.model.embedding.weight  # detached
    assert not whole(task.model.embedding.weight).requires_grad


def look(folder):
    """(vectors, the last picture of each kind)."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    pictures = {}
    for tag in events.Tags()["images"]:
        (folder / "picture.png").write_bytes(events.Images(tag)[-1].encoded_image_string)
        pictures[tag] = np.asarray(Image.open(folder / "picture.png")).astype(int)
    return np.loadtxt(folder / "projector" / "vectors.tsv"), pictures


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["bert_small", "t5_small"])
def test_sharded_pictures_are_those_of_one_process(experiment, tmp_path, session_cache, text_folder):
    found = {}
    for name, options in {"one": [], "two": ["trainer=fsdp", "trainer.devices=2", "trainer.accelerator=cpu"]}.items():
        given = [f"experiment={experiment}", *OPTIONS, f"data.path={text_folder}", f"cache_dir={session_cache}"]
        command = [sys.executable, "-m", "lit_tfm.train", *given, *options, f"output_dir={tmp_path / name}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = look(tmp_path / name)
    np.testing.assert_allclose(found["two"][0], found["one"][0], rtol=1e-2, atol=1e-3)
    assert found["two"][1].keys() == found["one"][1].keys() != set()
    for tag, picture in found["one"][1].items():
        assert picture.shape == found["two"][1][tag].shape
        assert np.abs(picture - found["two"][1][tag]).max() <= 2, tag  # of 255
