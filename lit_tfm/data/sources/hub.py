"""Data sets of the Hugging Face hub, by way of the `datasets` library, without its 25 s of silence when there is no
network: a data set in the cache is used with no network at all, and otherwise one request finds out within 3 s whether
the hub answers."""

import hashlib
import json
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_tfm.data.sources.columns import Column, Columns
from lit_tfm.data.sources.documents import WAYS, split_documents
from lit_tfm.data.sources.source import SPLITS, Source
from lit_tfm.errors import UserError, nearest

log = logging.getLogger(__name__)

# Neither usage data nor the counting of downloads at yet another place; both libraries read this when imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")

PROBE_SECONDS = 2.5
ROW_BATCH = 10_000


class HubUnreachable(UserError):
    """The hub does not answer; the message says what to type instead."""


class Hub(Source):
    """A data set `repo` of the hub, in its configuration `config`.

    `splits` maps train, validation and test to other names (`{"validation": "validation_matched"}`). `document` is
    `row`, or for running text whose rows are lines: line, paragraph, wikitext or file, as for files. Classes are named
    by the data set's own features unless `labels` is given.
    """

    origin = "hub"

    def __init__(
        self,
        repo: str,
        config: str | None = None,
        revision: str | None = None,
        splits: Mapping[str, str] | None = None,
        document: str = "row",
        text: Column | Sequence[Column] = "text",
        text_b: Column | Sequence[Column] | None = None,
        label: Column | Sequence[Column] | None = "label",
        labels: Sequence[str] | None = None,
        label_offset: int = 0,
    ) -> None:
        if document not in (ways := ["row", *WAYS]):
            raise UserError(f"data.hub.document={document}: one of {', '.join(ways)}{nearest(document, ways)}")
        self.repo, self.config, self.revision, self.document = repo, config, revision, document
        self.name = f"{repo}/{config}" if config else repo
        self._names = {split: split for split in SPLITS} | dict(splits or {})
        self._columns = Columns(text, text_b, label, labels, label_offset)
        self.running = document != "row"

    def load(self) -> "Hub":
        """Fetch the data set, or find it in the cache. Raises HubUnreachable, or UserError for what is not there."""
        found = next(iter(self._data.values())).info.config_name
        if self.config is None and found not in (None, "default"):
            self.name = f"{self.repo}/{found}"  # the only one there is, or the one in the cache: said, not guessed
        return self

    def splits(self) -> list[str]:
        return [split for split in SPLITS if self._names[split] in self._data]

    def fingerprint(self) -> str:
        content = {split: self._hash(split) for split in self.splits()}
        settings = [self.repo, self.config, self._names, self.document, repr(self.columns)]
        return hashlib.sha256(json.dumps(["hub", 1, content, settings]).encode()).hexdigest()

    def documents(self, split: str) -> Iterator[str]:
        if self.document == "row":
            yield from (text for text in self._texts(split) if text.strip())
        else:
            yield from split_documents(self._blocks(split), self.document)

    def rows(self, split: str) -> Iterator[dict]:
        for number, row in enumerate(self._split(split)):
            yield self.columns.example(row, f"{self.name}, {split} row {number}")

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.columns.labels

    @cached_property
    def columns(self) -> Columns:
        """The columns, with the class names that the data set itself gives."""
        given = self._columns
        feature = next(iter(self._data.values())).features.get(given.label)
        names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
        if given.labels is not None or names is None:
            return given
        return Columns(given.text, given.text_b, given.label, tuple(names), 0)

    def _texts(self, split: str) -> Iterator[str]:
        for number, batch in enumerate(self._split(split).iter(batch_size=ROW_BATCH)):
            rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
            where = f"{self.name}, {split} row {number * ROW_BATCH}"
            yield from (self.columns.text_of(row, where) for row in rows)

    def _blocks(self, split: str) -> Iterator[str]:
        """Rows as lines. The hub's WikiText keeps the line ends, except for blank lines."""
        lines: list[str] = []
        for text in self._texts(split):
            lines.append(text if text.endswith("\n") else text + "\n")
            if len(lines) == ROW_BATCH:
                yield "".join(lines)
                lines = []
        yield "".join(lines)

    def _split(self, split: str) -> Any:
        if split not in self.splits():
            raise UserError(f"{self.name}: there is no {split} split, only {', '.join(self._data)}")
        return self._data[self._names[split]]

    def _hash(self, split: str) -> list:
        """The cache folder's name holds the hash of the files at their commit; the same on every machine."""
        data = self._split(split)
        return [data.num_rows, *sorted(Path(file["filename"]).parent.name for file in data.cache_files)]

    @cached_property
    def _data(self) -> Any:
        if _may_be_cached(self.repo):
            try:
                with _offline():
                    return self._load()
            except (UserError, OSError, ValueError):
                log.info("%s is not wholly in the cache", self.name)
        _probe(self.repo)
        return self._load()

    def _load(self) -> Any:
        from datasets import load_dataset  # optional: takes about two seconds to import
        from datasets.exceptions import DatasetNotFoundError  # optional
        from huggingface_hub.utils import httpx  # optional: httpx or httpx2, whichever the hub library goes by

        try:
            return load_dataset(self.repo, self.config, revision=self.revision)
        except DatasetNotFoundError as error:
            why = (
                "gated: accept its terms and log in" if "gated" in str(error) else "no such data set, or a private one"
            )
            raise UserError(f"data.hub.repo={self.repo}: {why}; or give files: data.path=PATH") from error
        except (ConnectionError, TimeoutError, httpx.HTTPError) as error:
            raise _unreachable(self.repo, f"the download broke off: {_first_line(error)}") from error
        except ValueError as error:  # an unknown or missing configuration; the library lists those there are
            raise UserError(f"data.hub: {self.name}: {' '.join(str(error).split())[:600]}") from error


def _endpoint() -> tuple[str, Path]:
    """Address of the hub, and the folder in which `datasets` keeps what it has fetched."""
    from huggingface_hub import constants  # optional: needed for the hub alone

    cache = os.environ.get("HF_DATASETS_CACHE") or os.path.join(constants.HF_HOME, "datasets")
    return constants.ENDPOINT, Path(cache).expanduser()


def _may_be_cached(repo: str) -> bool:
    """Whether the cache has a folder of that name (`Owner___snake_name`). Cheap, and not the last word."""

    def plain(name: str) -> str:
        return name.replace("/", "").replace("_", "").lower()

    folder = _endpoint()[1]
    return folder.is_dir() and any(plain(p.name) == plain(repo) for p in folder.iterdir() if p.is_dir())


@contextmanager
def _offline() -> Iterator[None]:
    """As with HF_HUB_OFFLINE=1, which both libraries read only when they are imported."""
    import datasets  # optional
    from huggingface_hub import constants  # optional

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    verbosity = datasets.logging.get_verbosity()
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    datasets.logging.set_verbosity_error()  # that the cache is used is no warning here
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        datasets.logging.set_verbosity(verbosity)


def _probe(repo: str) -> None:
    """One request, given up after 2.5 s in all. A thread, since looking up a name knows no time limit."""
    from huggingface_hub import constants  # optional

    if constants.HF_HUB_OFFLINE:
        raise _unreachable(repo, "HF_HUB_OFFLINE is set and the data set is not in the cache")
    outcome: list[str | None] = []
    done = threading.Event()

    def ask() -> None:
        outcome.append(_answer(f"{_endpoint()[0]}/api/datasets/{repo}"))
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    done.wait(PROBE_SECONDS)
    why = outcome[0] if outcome else f"no answer within {PROBE_SECONDS} s"
    if why is not None:
        raise _unreachable(repo, why)


def _answer(url: str) -> str | None:
    """None when something answers there as the hub would, be it with a refusal; else why not."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        return f"status {error.code}" if error.code >= 500 else None
    except (OSError, ValueError) as error:  # URLError is an OSError; a broken HF_ENDPOINT a ValueError
        return _first_line(getattr(error, "reason", error))
    return None


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unreachable(repo: str, why: str) -> HubUnreachable:
    return HubUnreachable(
        f"{repo} is not in the cache and the hub {_endpoint()[0]} can't be reached ({why}); "
        "give files: data.path=PATH, or take the built-in text: data.fallback=pydoc"
    )
