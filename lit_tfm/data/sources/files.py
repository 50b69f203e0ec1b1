"""Files on this machine as a source: text, jsonl, csv, tsv and parquet, `.gz` of the text kinds."""

import glob
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from lit_tfm.data.sources.columns import Column, Columns
from lit_tfm.data.sources.documents import WAYS, split_documents
from lit_tfm.data.sources.reading import KINDS, kind_of, read_blocks, read_table
from lit_tfm.data.sources.source import SPLITS, Source
from lit_tfm.errors import UserError, nearest

log = logging.getLogger(__name__)

ERRORS = ("strict", "replace")
WORDS = {"train": "train", "valid": "validation", "validation": "validation", "dev": "validation", "val": "validation"}
WORDS |= {"training": "train", "test": "test"}
SPLIT_NAME = re.compile(rf"({'|'.join(sorted(WORDS, key=len, reverse=True))})(?:[-_]\d.*)?")


class Files(Source):
    """Text or rows in files.

    `path`: a file, a glob, a folder, a list of these, or a mapping of split to any of them. Files named train,
    valid(ation)/dev/val and test (one part of the name between dots says so: `train.txt`, `wiki.valid.tokens`,
    `test-00000-of-00001.parquet`) are the splits. Others are training text, unless there is a train file: then they
    are left out, with a line in the log. One file alone is training text whatever its name.
    `document`: what one document of a text file is (file, line, paragraph, wikitext); a row is always one.
    `errors`: strict, or replace: what is not UTF-8 becomes U+FFFD and is counted in the log.
    `header`: whether csv and tsv have one; by default they do, unless columns are given by position.
    """

    origin = "files"

    def __init__(
        self,
        path: str | Sequence[str] | Mapping[str, str],
        document: str = "file",
        text: Column | Sequence[Column] = "text",
        text_b: Column | Sequence[Column] | None = None,
        label: Column | Sequence[Column] | None = "label",
        labels: Sequence[str] | None = None,
        label_offset: int = 0,
        label_separator: str | None = None,
        header: bool | None = None,
        delimiter: str | None = None,
        errors: str = "strict",
    ) -> None:
        if errors not in ERRORS:
            raise UserError(f"data.errors={errors}: one of {', '.join(ERRORS)}{nearest(errors, ERRORS)}")
        if document not in WAYS:
            raise UserError(f"data.document={document}: one of {', '.join(WAYS)}{nearest(document, WAYS)}")
        self.columns = Columns(text, text_b, label, labels, label_offset, label_separator)
        self.labels = self.columns.labels
        self.document, self.delimiter, self.errors = document, delimiter, errors
        self.header = not self.columns.positions if header is None else header
        self.name = str(path) if isinstance(path, str | Path) else ", ".join(map(str, _flat(path)))
        self._files = _by_split(path)
        train = self._files.get("train", [])
        self.running = len(train) == 1 and _kind(train[0]) == "text"

    def splits(self) -> list[str]:
        return [split for split in SPLITS if self._files.get(split)]

    def fingerprint(self) -> str:
        files = [[split, _kind(p), _sha256(p)] for split in self.splits() for p in self._files[split]]
        settings = [repr(self.columns), self.document, self.header, self.delimiter]
        settings += [self.errors] if self.errors != "strict" else []  # runs from before there was a choice keep theirs
        return hashlib.sha256(json.dumps(["files", 1, files, settings]).encode()).hexdigest()

    def documents(self, split: str) -> Iterator[str]:
        for path in self._of(split):
            if (kind := _kind(path)) == "text":
                yield from split_documents(read_blocks(path, self.errors), self.document)
            else:
                rows = read_table(path, kind, self.header, self.delimiter, self.errors)
                texts = (self.columns.text_of(row, where) for where, row in rows)
                yield from (text for text in texts if text.strip())

    def rows(self, split: str) -> Iterator[dict]:
        for path in self._of(split):
            if (kind := _kind(path)) == "text":
                raise UserError(f"{path}: classification needs rows with labels: a csv, tsv, jsonl or parquet file")
            for where, row in read_table(path, kind, self.header, self.delimiter, self.errors):
                yield self.columns.example(row, where)

    def _of(self, split: str) -> list[Path]:
        if split not in self._files:
            raise UserError(f"{self.name}: there is no {split} split, only {', '.join(self.splits())}")
        return self._files[split]


def _kind(path: Path) -> str:
    return kind_of(path) or "text"


def _flat(path: object) -> list:
    if isinstance(path, str | Path):
        return [path]
    parts = path.values() if isinstance(path, Mapping) else path
    return [entry for part in parts for entry in _flat(part)]


def _by_split(path: str | Sequence | Mapping) -> dict[str, list[Path]]:
    if isinstance(path, Mapping):
        if wrong := [split for split in path if split not in SPLITS]:
            raise UserError(
                f"data.path: '{wrong[0]}' is no split; one of {', '.join(SPLITS)}{nearest(wrong[0], SPLITS)}"
            )
        return {split: [file for entry in _flat(part) for file in _found(entry)] for split, part in path.items()}
    files = [file for entry in _flat(path) for file in _found(entry)]
    if len(files) == 1:
        return {"train": files}
    named: dict[str, list[Path]] = {}
    others = []
    root = Path(path) if isinstance(path, str | Path) and Path(path).is_dir() else None
    for file in files:
        if (split := _split_of(file, root)) is None:
            others.append(file)
        else:
            named.setdefault(split, []).append(file)
    if "train" not in named and others:
        named["train"] = others
    elif others:
        log.warning("%s: left out, since other files are named train: %s", path, ", ".join(p.name for p in others))
    return named


def _split_of(file: Path, root: Path | None) -> str | None:
    """The split a file's name stands for, else that of a folder between `root` and the file."""
    folders = [] if root is None else file.relative_to(root).parts[:-1]
    for name in (file.name, *reversed(folders)):
        found = {WORDS[m[1]] for part in name.lower().split(".") if (m := SPLIT_NAME.fullmatch(part))}
        if len(found) == 1:
            return found.pop()
    return None


def _found(entry: str | Path) -> list[Path]:
    """The files a path stands for, sorted."""
    path = Path(entry).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        if known := [p for p in inside if kind_of(p) or (p.suffix == ".gz" and _split_of(p, path))]:
            return [_staying(p, path) for p in known]
        kinds = ", ".join(suffix for suffixes in KINDS.values() for suffix in suffixes)
        raise UserError(f"data.path={entry}: the folder holds no text; files that are read: {kinds} (also .gz)")
    if glob.has_magic(str(path)):
        if found := sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()):
            return found
        raise UserError(
            f"data.path={entry}: no file matches; in quotes, * stands for anything in a name and ** for folders"
        )
    parent = next(p for p in path.parents if p.is_dir())
    missing = path.relative_to(parent).parts[0] if path != parent else path.name
    near = nearest(missing, [p.name for p in parent.iterdir()])
    raise UserError(f"data.path={entry}: there is no {parent / missing}{near}; give a file, a folder or a glob")


def _staying(file: Path, folder: Path) -> Path:
    """The file. Raises UserError where it is a link out of the folder, which somebody else may have packed: a link to
    a private file would make that training text. The hub's cache consists of links to its own blobs."""
    root = folder.resolve()
    homes = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]
    if not any(file.resolve().is_relative_to(home) for home in homes):
        raise UserError(
            f"{file} is a link out of the folder, to {file.resolve()}; if that is meant, name the file itself: "
            f"data.path={file}, or all of them: 'data.path={folder}/*'"
        )
    return file


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _hash_of(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=4096)
def _hash_of(path: Path, size: int, modified: int, changed: int) -> str:
    """Hash of the bytes, read once in a process while size and times stay; nobody can set `changed` back."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
