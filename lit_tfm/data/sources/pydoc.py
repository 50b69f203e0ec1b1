"""The running Python's own documentation as data: the corpus of a machine without a network.

Docstrings of the standard library and the topics of `help()`, about 2.5 MB of English. Everything is parsed with
`ast` from source files; no module is imported. Parsing takes some seconds, so the texts are kept in the cache folder,
under a key made of the Python version and the files' sizes.

Files with next to no docstrings (tests, tables) are left out: 9 % of the text, but more than half of the parsing.
"""

import ast
import hashlib
import json
import os
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path

from lit_tfm.data.sources.source import SPLITS, Source
from lit_tfm.data.store import build_once
from lit_tfm.errors import UserError

VERSION = 2  # raised when the texts change, so that caches are made anew
DOCSTRING = re.compile(rb':[ \t]*\r?\n\s*[rR]?"""')  # a cheap guess, before parsing
DENSE = 0.1  # docstrings in a kB of source, at least
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
TOPICS = "pydoc_data.topics"
SKIPPED = ("site-packages", "dist-packages", "__pycache__")


class _Docstrings(Source):
    """All docstrings in order, each once; `module, text` pairs."""

    origin = "pydoc"

    def __init__(self, cache_dir: str | Path = "~/.cache/lit_tfm") -> None:
        self.cache_dir = Path(cache_dir).expanduser()
        self.name = f"pydoc (Python {sys.version.split()[0]})"

    def splits(self) -> list[str]:
        return list(SPLITS)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{type(self).__name__} {_corpus_key()}".encode()).hexdigest()

    def documents(self, split: str) -> Iterator[str]:
        raise NotImplementedError

    @cached_property
    def _corpus(self) -> list[tuple[str, str]]:
        def build(folder: Path) -> None:
            with open(folder / "docstrings.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(pair) + "\n" for pair in _distinct(_read(_library())))

        folder = build_once(self.cache_dir / "pydoc", _corpus_key(), build)
        with open(folder / "docstrings.jsonl", encoding="utf-8") as file:
            return [tuple(json.loads(line)) for line in file]


class PydocText(_Docstrings):
    """Running text: a document is a module with all its docstrings in order, or a topic of `help()`.

    The hash of a document's name decides its split: 90 % train, 5 % validation, 5 % test. No docstring occurs twice.
    """

    def documents(self, split: str) -> Iterator[str]:
        parts: dict[str, list[str]] = {}
        for module, text in self._corpus:
            parts.setdefault(module, []).append(text)
        for module, texts in parts.items():
            place = _place(module)
            if split == ("test" if place < 0.05 else "validation" if place < 0.10 else "train"):
                yield "\n\n".join(texts) + "\n"

    def rows(self, split: str) -> Iterator[dict]:
        raise UserError("data.fallback=pydoc is running text; for classification type data.fallback=pydoc_modules")


class PydocModules(_Docstrings):
    """Classification: which module (or package) of the standard library does this docstring come from.

    The `classes` modules with most docstrings, at most `cap` of each, near-repeats left out; 80 % train, 10 %
    validation, 10 % test of every class, by the hash of the text.
    """

    def __init__(self, cache_dir: str | Path = "~/.cache/lit_tfm", classes: int = 24, cap: int = 250) -> None:
        super().__init__(cache_dir)
        self.classes, self.cap = classes, cap

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{super().fingerprint()} {self.classes} {self.cap}".encode()).hexdigest()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted(self._by_module))

    def documents(self, split: str) -> Iterator[str]:
        yield from (row["text"] for row in self.rows(split))

    def rows(self, split: str) -> Iterator[dict]:
        mixed = []
        for module, texts in self._by_module.items():
            first, second = round(0.1 * len(texts)), round(0.2 * len(texts))
            part = {"validation": texts[:first], "test": texts[first:second], "train": texts[second:]}[split]
            mixed += [(_place(text), text, module) for text in part]
        for _, text, module in sorted(mixed):
            yield {"text": text, "text_b": None, "label": module}

    @cached_property
    def _by_module(self) -> dict[str, list[str]]:
        """Class -> its docstrings in the order of their hashes."""
        seen: set[str] = set()
        found: dict[str, list[str]] = {}
        for module, text in self._corpus:
            label = module.split(".")[0].removeprefix("_py")  # _pydecimal is decimal in Python
            # Letters alone: texts that differ in numbers, case or layout count as the same.
            likeness = re.sub(r"[^a-z]+", " ", text.lower()).strip()[:100]
            if label in ("test", "topics") or len(likeness) < 25 or likeness in seen:
                continue
            seen.add(likeness)
            found.setdefault(label, []).append(text)
        counts = Counter({label: len(texts) for label, texts in found.items()})
        chosen = sorted(sorted(counts), key=lambda label: -counts[label])[: self.classes]
        return {label: sorted(found[label], key=_place)[: self.cap] for label in sorted(chosen)}


def _place(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _library() -> Path:
    root = Path(sysconfig.get_paths()["stdlib"])
    if not (root / "os.py").is_file():
        raise UserError(f"this Python has no source files of its library in {root}; give text: data.path=PATH")
    return root


def _sources(root: Path) -> list[Path]:
    found = []
    for folder, inside, names in os.walk(root):
        inside[:] = [name for name in inside if name not in SKIPPED]  # may hold thousands of files
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


@lru_cache(maxsize=1)
def _corpus_key() -> str:
    root = _library()
    files = [[p.relative_to(root).as_posix(), p.stat().st_size] for p in _sources(root)]
    return hashlib.sha256(json.dumps([VERSION, sys.version, files]).encode()).hexdigest()[:32]


def _read(root: Path) -> Iterator[tuple[str, str]]:
    """(module, docstring) of every docstring, then (topics.NAME, text) of every topic, in a fixed order."""
    for path in _sources(root):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        source = path.read_bytes()
        if name != TOPICS and len(DOCSTRING.findall(source)) * 1000 < DENSE * len(source):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in other people's strings
                tree = ast.parse(source)
        except (SyntaxError, ValueError):  # bad on purpose: data of the tests
            continue
        if name == TOPICS:
            yield from _topics(tree)
        else:
            yield from ((name, text) for text in _docstrings(tree))


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Of a module, class or function and all within, also those under `if` and `try`."""
    if isinstance(node, (ast.Module, *DEFINITIONS)) and (text := ast.get_docstring(node)):
        yield text
    for name in ("body", "handlers", "orelse", "finalbody"):
        for inner in getattr(node, name, ()):
            if isinstance(inner, (*DEFINITIONS, ast.If, ast.Try, ast.ExceptHandler)):
                yield from _docstrings(inner)


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The dictionary literal `topics`."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                yield f"topics.{name}", text.strip()


def _distinct(pairs: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for module, text in pairs:
        text = "\n".join(line.rstrip() for line in text.strip().splitlines())
        # A lone surrogate in a string literal is no text that can be stored.
        if text and text not in seen and not re.search(r"[\ud800-\udfff\0]", text):
            seen.add(text)
            yield module, text
