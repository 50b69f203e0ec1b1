"""A run that goes on: metrics.csv is cut where it goes on from, whatever a crash left at its end."""

import csv
import os

from lit_tfm.callbacks.metrics_csv import MetricsCsv
from lit_tfm.reports.reading import read_points
from lit_tfm.tasks.progress import Progress


def test_no_point_stands_twice_after_going_on(tmp_path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsCsv(path, Progress(max_steps=9))
    for step in (1, 2, 3, 4):
        first.log_metrics({"val/loss": 5.0 - step, "train/loss": 6.0 - step}, step)
    with open(path, "ab") as file:  # a power cut: zeros, a torn line, bytes that are no text
        file.write(b"\0\0\0\0\n5,0.0,0,val/l\nfive,0.0,0,val/loss,1\n\xff\xfe\n")
    before = path.read_bytes()
    again = MetricsCsv(path, Progress(max_steps=9), resume_step=2)
    assert path.read_bytes() == before  # killed before it trains, it is still the run that it was
    for step in (3, 4, 5):
        again.log_metrics({"val/loss": 50.0 - step}, step)
    with open(path, newline="") as file:
        places = [(row["step"], row["name"]) for row in csv.DictReader(file)]
    assert len(places) == len(set(places))
    points, problem = read_points(path)
    assert [(p.step, p.value) for p in points["val/loss"]] == [(1, 4.0), (2, 3.0), (3, 47.0), (4, 46.0), (5, 45.0)]
    assert [p.step for p in points["train/loss"]] == [1, 2]
    assert problem == ""


def test_a_checkpoint_is_taken_of_a_run_without_its_abandoned_rows(tmp_path) -> None:
    first = MetricsCsv(tmp_path / "metrics.csv", Progress(max_steps=9))
    for step in (1, 2, 3):
        first.log_metrics({"val/loss": 1.0}, step)
    MetricsCsv(tmp_path / "metrics.csv", Progress(max_steps=9), resume_step=1).save()
    assert [p.step for p in read_points(tmp_path / "metrics.csv")[0]["val/loss"]] == [1]


def test_a_checkpoint_is_never_ahead_of_the_rows(run, text_folder, monkeypatch) -> None:
    """After a power cut, too: each time one gets its name, every row that was written is synced."""
    synced, named, sync, replace = {}, [], os.fsync, os.replace

    def fsync(descriptor) -> None:
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size
        sync(descriptor)

    def rename(source, target) -> None:
        if str(target).endswith("last.ckpt"):
            status = (target.parent.parent / "metrics.csv").stat()
            named.append(synced.get(status.st_ino) == status.st_size)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    small = ["data.block_size=32", "data.batch_size=4", "tokenizer.vocab_size=400", "data.val_limit=4", "budget=null"]
    run("experiment=bert_small", *small, f"data.path={text_folder}", "trainer.max_steps=4", "trainer.val_every=2")
    assert named == [True, True]
