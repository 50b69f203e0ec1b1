"""What TensorBoard shows of a trial beside its run's scalars: a row of the HParams table, and curves over tokens.

Written by the worker when the trial has ended, however it ended: a run that crashed could not have done it, and a row
cannot be changed once it is there. So a trial's own run writes none (callbacks/tensorboard.py), and the row says

    State          complete, pruned or failed; the capital makes it the first column
    model/d_model  what was searched, and what follows from it; the rest is the same in all trials, see sweep.yaml
    best/loss ...  the run's own scalars at its best validation; here only objectives that a run has no scalar for

`loss_by_tokens/val` has tokens where other scalars have steps: trials with other batch sizes can be laid over one
another. No "experiment" is declared: TensorBoard would take the columns of all other runs from it.
"""

import contextlib
import io
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.summary.writer.record_writer import RecordWriter

from lit_tfm.callbacks.tensorboard import best_tag, tag
from lit_tfm.search.outcomes import Point, curve, read_json

# Read after the run's own events, which are named by the time: a run that begins or resumes tells TensorBoard to forget
# what lies beyond its step, and tokens are far beyond.
EVENTS = "events.out.tfevents.9999999999.trial"


def finish_trial(
    folder: Path, state: str, searched: Mapping[str, Any], metrics: Sequence[str], values: Sequence[float] = ()
) -> Path | None:
    """Write, or write again, the row and the curves of the trial in `folder`.

    `state`: complete, pruned or failed; `searched`: config keys and their values; `values`: of a complete trial, one
    for each of `metrics`. None where nothing could be written: a full disk is no reason to lose a trial.
    """
    folder = Path(folder)
    runs = sorted(folder.glob("seed-*")) or [folder]
    events = [*_row(state, searched, time.time())]
    measured = list(dict.fromkeys([*metrics, "val/loss"]))
    for run in runs if runs == [folder] else []:
        for name in measured:
            events += _over_tokens(name, curve(run, name))
    own = set(read_json(folder / "summary.json").get("best") or {})
    for name, value in zip(metrics, values, strict=False):
        if name not in own and math.isfinite(value):
            events.append(_event(_scalar(best_tag(name), value)))
    for run in runs if runs != [folder] else []:  # of several seeds each has curves of its own
        _write(run / EVENTS, [event for name in measured for event in _over_tokens(name, curve(run, name))])
    return _write(folder / EVENTS, events)


def by_tokens(name: str) -> str:
    """`val/loss` -> loss_by_tokens/val: beside the group loss, and not among the first columns of the table."""
    group, _, leaf = tag(name).rpartition("/")
    return f"{group or 'metrics'}_by_tokens/{leaf}"


def _row(state: str, searched: Mapping[str, Any], now: float) -> Iterable[Event]:
    start = SessionStartInfo(start_time_secs=now)
    start.hparams["State"].string_value = state
    for key, value in searched.items():
        name = key.replace(".", "/")
        if value is None:
            continue  # it would turn a column of numbers into text
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, (int, float)):
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    yield _event(_hparams(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)))
    status = STATUS_FAILURE if state == "failed" else STATUS_SUCCESS
    end = SessionEndInfo(status=status, end_time_secs=now)
    yield _event(_hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)))


def _over_tokens(name: str, points: list[Point]) -> Iterable[Event]:
    """With the clock of the training, so that TensorBoard's relative time is that, too."""
    ended = time.time() - (points[-1].seconds if points else 0.0)
    for point in points:
        if math.isfinite(point.value):
            yield _event(_scalar(by_tokens(name), point.value), point.tokens, ended + point.seconds)


def _scalar(name: str, value: float) -> Summary.Value:
    return Summary.Value(tag=name, simple_value=value)


def _hparams(name: str, content: HParamsPluginData) -> Summary.Value:
    content.version = metadata.PLUGIN_DATA_VERSION
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString())
    return Summary.Value(tag=name, metadata=SummaryMetadata(plugin_data=plugin))


def _event(value: Summary.Value, step: int = 0, wall_time: float | None = None) -> Event:
    return Event(wall_time=wall_time or time.time(), step=step, summary=Summary(value=[value]))


def _write(path: Path, events: Iterable[Event]) -> Path | None:
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in [Event(wall_time=time.time(), file_version="brain.Event:2"), *events]:
        writer.write(event.SerializeToString())
    temporary = path.with_name(f".partial.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.getvalue())
        os.replace(temporary, path)
        return path
    return None
