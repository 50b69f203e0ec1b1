"""The built-in text, made for real from the running Python; and which source is chosen."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lit_tfm.data.sources.files import Files
from lit_tfm.data.sources.pydoc import PydocModules, PydocText
from lit_tfm.data.sources.resolve import resolve
from lit_tfm.errors import UserError


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    """Parsed once for all tests of this file."""
    return tmp_path_factory.mktemp("pydoc")


def test_text_is_large_enough_and_split_without_overlap(cache_dir):
    source = PydocText(cache_dir)
    parts = {split: list(source.documents(split)) for split in source.splits()}
    sizes = {split: sum(map(len, texts)) for split, texts in parts.items()}
    assert sum(sizes.values()) > 1_500_000  # 2.5 MB where the library is whole; some systems leave its tests out
    assert all(0.02 < sizes[split] / sum(sizes.values()) < 0.15 for split in ("validation", "test"))
    for other in ("validation", "test"):
        shared = set(parts["train"]) & set(parts[other])
        assert not shared
    assert any("Return the" in text for text in parts["train"])
    with pytest.raises(UserError, match=r"classification type data.fallback=pydoc_modules"):
        source.rows("train")


def test_no_docstring_occurs_twice(cache_dir):
    corpus = PydocText(cache_dir)._corpus
    assert max(Counter(text for _, text in corpus).values()) == 1
    assert sum(module.startswith("topics.") for module, _ in corpus) > 50


def test_modules_are_balanced_and_every_split_has_every_class(cache_dir):
    source = PydocModules(cache_dir, classes=20, cap=100)
    rows = {split: list(source.rows(split)) for split in source.splits()}
    counts = {split: Counter(row["label"] for row in part) for split, part in rows.items()}
    assert len(source.labels) == 20
    assert all(set(count) == set(source.labels) for count in counts.values())
    for label in source.labels:
        whole = sum(count[label] for count in counts.values())
        assert whole <= 100
        assert abs(counts["test"][label] - 0.1 * whole) <= 1
    texts = [" ".join(row["text"].lower().split()) for part in rows.values() for row in part]
    assert len(set(texts)) == len(texts)
    assert "test" not in source.labels


def test_made_the_same_in_another_process_without_importing_the_modules(cache_dir, tmp_path):
    script = (
        "import sys\nfrom lit_tfm.data.sources.pydoc import PydocText\n"
        f"s = PydocText({str(cache_dir)!r})\nprint(s.fingerprint(), len(s._corpus), 'antigravity' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    source = PydocText(cache_dir)
    assert done.stdout.split() == [source.fingerprint(), str(len(source._corpus)), "False"]


def test_fingerprints_differ_by_what_is_asked(cache_dir):
    sources = [PydocText(cache_dir), PydocModules(cache_dir), PydocModules(cache_dir, cap=99)]
    assert len({source.fingerprint() for source in sources}) == 3


# -- resolve ------------------------------------------------------------------------------------------------------


def test_a_path_comes_first(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    hub = {"repo": "owner/none"}
    source = resolve(path=str(tmp_path), files={"document": "line"}, hub=hub, fallback="pydoc")
    assert isinstance(source, Files)
    assert list(source.documents("train")) == ["one", "two"]
    assert source.notice is None


def test_the_built_in_text_asked_for_by_name_needs_no_notice(cache_dir):
    source = resolve(fallback="pydoc_modules", cache_dir=cache_dir)
    assert (source.origin, source.notice) == ("pydoc", None)


def test_nothing_to_read_is_told():
    with pytest.raises(UserError, match=r"data.path=FILE"):
        resolve()
    with pytest.raises(UserError, match="did you mean 'pydoc'"):
        resolve(fallback="pydocs")
