"""A run that goes on: metrics.csv is cut where it goes on from, whatever a crash left at its end."""

import csv

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
    again = MetricsCsv(path, Progress(max_steps=9), resume_step=2)
    for step in (3, 4, 5):
        again.log_metrics({"val/loss": 50.0 - step}, step)
    with open(path, newline="") as file:
        places = [(row["step"], row["name"]) for row in csv.DictReader(file)]
    assert len(places) == len(set(places))
    points, problem = read_points(path)
    assert [(p.step, p.value) for p in points["val/loss"]] == [(1, 4.0), (2, 3.0), (3, 47.0), (4, 46.0), (5, 45.0)]
    assert [p.step for p in points["train/loss"]] == [1, 2]
    assert problem == ""
