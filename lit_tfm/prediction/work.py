"""The work of the verb predict: texts to the terminal, or a table to a file."""

import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from lit_tfm import trained
from lit_tfm.console import Console
from lit_tfm.errors import UserError
from lit_tfm.evaluation.screen import progress
from lit_tfm.evaluation.subject import open_subject
from lit_tfm.prediction import rows, screen
from lit_tfm.prediction.labels import Labels
from lit_tfm.prediction.masks import Masks, require_mask
from lit_tfm.prediction.output import Lines, Output, Stdout
from lit_tfm.prediction.predictor import Predictor
from lit_tfm.runs import RunFolder
from lit_tfm.tasks.classification import Classification
from lit_tfm.tasks.language import LanguageTask
from lit_tfm.tasks.masked_lm import MaskedLM
from lit_tfm.terminal import visible

CHUNK = 1024  # rows that are read, predicted and written together


def check_task(run: RunFolder) -> None:
    """Raises UserError where the run's task predicts nothing, and says what does."""
    task = trained.task_class(run)
    if not issubclass(task, (Classification, MaskedLM)):
        instead = f"python -m lit_tfm.{'generate' if issubclass(task, LanguageTask) else 'evaluate'} {run.path}"
        raise UserError(
            f"{run.path}: predict gives labels or words for masks, and {task.__name__} learns neither; type {instead}"
        )


def predictor_of(given: Namespace, labels: int) -> Predictor:
    """`labels`: how many answers a classifier gives where `--top` is not said."""
    subject = open_subject(given.run, given.checkpoint)
    for note in subject.notes:
        tell(f"note: {note}")
    if isinstance(subject.task, Classification):
        return Labels(subject, given.top or labels)
    return Masks(subject, given.top or 5)


def texts(given: Namespace) -> None:
    """Texts of the command line, to the terminal."""
    predictor = predictor_of(given, labels=3)
    asked = rows.of_words([rows.whole(text) for text in given.texts], rows.is_pair(predictor.subject.cfg))
    if isinstance(predictor, Masks):
        require_mask(asked, predictor.spelled[0])
    screen.show(Console(highlight=False), asked, predictor.predict(asked))
    tell_counts(predictor)


def table(given: Namespace) -> None:
    """A file or stdin, to a file or stdout."""
    with tempfile.TemporaryDirectory() as folder:
        stdin = given.file in (None, "-")
        path = rows.kept_stdin(folder) if stdin else Path(given.file).expanduser()
        try:
            _table(given, path, "stdin" if stdin else None)
        except UserError as error:
            said = str(error).replace("data.errors=", "--errors ")  # the option here
            raise UserError(said.replace(str(path), "stdin") if stdin else said) from error


def _table(given: Namespace, path: Path, name: str | None) -> None:
    cfg = trained.config_of(RunFolder.open(given.run))
    asked = rows.Table(path, cfg, given.column, given.column_b, name, given.errors)
    count, digest, names = asked.survey()
    predictor = predictor_of(given, labels=1)
    kind = Path(given.output).suffix.lower()[1:] if given.output else "csv"
    lines = Lines(kind, names, predictor.columns)
    sink = Output(Path(given.output), work_of(predictor, asked, digest), given.overwrite) if given.output else Stdout()
    if sink.rows:
        tell(f"going on after {sink.rows:,} texts")
    try:
        work_through(asked, count, predictor, lines, sink)
    except KeyboardInterrupt:
        if given.output:
            tell(f"stopped after {sink.rows:,} of {count:,} texts; the same command goes on")
        raise SystemExit(130) from None
    finally:
        sink.close()
    tell_counts(predictor)
    if given.output:
        tell(f"{count:,} texts: {given.output}")


def work_of(predictor: Predictor, asked: rows.Table, digest: str) -> dict[str, str]:
    """What an unfinished output has to agree in, for another run of the command to go on with it."""
    return {
        "input": digest,
        "columns": f"{asked.columns} {asked.errors}",
        "run": str(predictor.subject.run.path.resolve()),
        "checkpoint": rows.sha256_of(predictor.subject.weights),
        "top": str(predictor.top),
    }


def work_through(asked: rows.Table, count: int, predictor: Predictor, lines: Lines, sink: Output | Stdout) -> None:
    with progress() as report:
        tick = report("texts", count)
        tick(sink.rows)
        if sink.empty:
            sink.append(lines.head(), 0)
        for chunk in asked.chunks(CHUNK, skip=sink.rows):
            sink.append(lines.chunk(chunk, predictor.predict(chunk)), len(chunk))
            tick(len(chunk))
    sink.finish()


def tell_counts(predictor: Predictor) -> None:
    """What happened to some of the texts, each said once."""
    for sentence, count in predictor.noted.items():
        tell(f"note: {count:,} text{'s' * (count != 1)} {sentence}")


def tell(line: str) -> None:
    print(visible(line), file=sys.stderr)
