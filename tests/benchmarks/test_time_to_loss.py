"""Both sides learn for a few steps through the code that the tables come from."""

import json
import random
import time
from types import SimpleNamespace

import curves
import pytest
import time_to_accuracy
import time_to_loss_char
import time_to_loss_mlm
from curves import Point, Watch

from lit_tfm.tasks.progress import Progress

TINY = ["trainer.accelerator=cpu", "model.d_model=16", "model.n_layers=1", "model.n_heads=2"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "seven", "dogs", "ran", "over", "hills", "and", "rivers"]


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=12))


def test_the_target_is_reached_at_the_first_point_that_is_as_good() -> None:
    curve = [Point(5, 1.0, 3.0), Point(10, 2.0, 2.0), Point(15, 3.0, 2.5)]
    assert curves.reached(curve, 2.5) == curve[1]
    assert curves.reached(curve, 1.0) is None
    assert curves.reached(curve, 2.9, rising=True) == curve[0]


def test_measuring_is_outside_of_the_clock() -> None:
    task = SimpleNamespace(progress=Progress(max_steps=4), eval=lambda: None, train=lambda: None)
    watch = Watch(lambda task: burn(0.3) or 7.0, every=2)
    task.progress.start()
    watch.on_train_start(None, task)
    for step in range(1, 5):
        watch.on_train_batch_end(SimpleNamespace(global_step=step), task, None, None, step - 1)
    assert [(p.step, p.value) for p in watch.curve] == [(2, 7.0), (4, 7.0)]
    assert watch.curve[-1].seconds < 0.3
    assert watch.curve[-1].cpu < 0.3


@pytest.mark.slow
def test_characters(tmp_path, capsys) -> None:
    draw = random.Random(0)
    (tmp_path / "input.txt").write_text("\n".join(sentence(draw) for _ in range(200)))
    typed = ["--path", str(tmp_path / "input.txt"), "--rounds", "2", "--steps", "4", "--peer-steps", "4"]
    time_to_loss_char.main([*typed, "--every", "2", "--dry", *TINY, f"cache_dir={tmp_path}"])
    said = capsys.readouterr().out
    assert "nanoGPT's settings: loss" in said
    assert "Parameters: lit_tfm" in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_masked_words(tmp_path, capsys) -> None:
    draw = random.Random(0)
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text("\n".join(sentence(draw) for _ in range(600)))
    typed = ["--path", str(tmp_path), "--quick", "--steps", "4", "--peer-steps", "2", "--every", "2", "--dry"]
    time_to_loss_mlm.main([*typed, *TINY, "data.batch_size=4", "tokenizer.vocab_size=64", f"cache_dir={tmp_path}"])
    said = capsys.readouterr().out
    assert "| Hugging Face: learning rate | loss |" in said
    assert "\n| 1 | 0.0005 |" in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_labels(tmp_path, capsys) -> None:
    draw = random.Random(0)
    names = ["sadness", "joy", "love", "anger", "fear", "surprise"]
    for split, count in (("train", 300), ("validation", 60), ("test", 60)):
        rows = [{"text": f"{name} {sentence(draw)}", "label": name} for name in draw.choices(names, k=count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    typed = ["--path", str(tmp_path), "--quick", "--peer-steps", "2", "--every", "2", "--target", "0.05", "--dry"]
    time_to_accuracy.main([*typed, *TINY, "tokenizer.vocab_size=64", f"cache_dir={tmp_path}"])
    said = capsys.readouterr().out
    assert "Time of lit_tfm over that of Hugging Face" in said
