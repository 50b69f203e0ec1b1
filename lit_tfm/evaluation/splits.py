"""The split that is evaluated: of the run's own data, or of another data set.

Only that split is read and tokenised, with the run's own tokenizer; labels are the run's, in its order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_tfm import config
from lit_tfm.build import make
from lit_tfm.data.holdout import HeldOut
from lit_tfm.data.module import TextData
from lit_tfm.data.sources.source import SPLITS
from lit_tfm.data.tokenizers import Pretrained
from lit_tfm.errors import UserError, nearest
from lit_tfm.evaluation import places
from lit_tfm.evaluation.subject import Subject

# What a model is used to, whatever the data: how texts are cut into examples.
KEPT = ("block_size", "pack", "cross_documents", "max_length", "batch_size", "batch_tokens")
LIMITS = {"train": "subset", "validation": "val_limit", "test": "test_limit"}
WORDS = {"valid": "validation", "val": "validation", "dev": "validation"}


class OneSplit:
    """A source with a single split, called `name`: the split `inner` of a HeldOut."""

    def __init__(self, held: HeldOut, inner: str, name: str) -> None:
        self.held, self.inner, self._name = held, inner, name
        self.source, self.name, self.labels, self.cuts = held.source, held.name, held.labels, held.cuts

    def splits(self) -> list[str]:
        return [self._name]

    def fingerprint(self) -> str:
        return self.held.fingerprint()

    def key(self, split: str) -> list[Any]:
        return self.held.key(self.inner)  # the cache of training serves here as well

    def documents(self, split: str) -> Iterator[str]:
        return self.held.documents(self.inner)

    def rows(self, split: str) -> Iterator[dict]:
        return self.held.rows(self.inner)


@dataclass
class OpenSplit:
    """A split ready to be scored. `inner` is the name the data module knows it by, `name` the one for people."""

    data: TextData
    source: OneSplit
    name: str
    inner: str
    own: bool  # whether this is the data set the run was trained on
    notes: list[str]

    def texts(self, wanted: list[int]) -> dict[int, str]:
        """The texts of these rows as they stand in the source; of a pair, both."""
        left, found = set(wanted), {}
        for number, row in enumerate(self.source.rows(self.inner)):
            if number in left:
                found[number] = row["text"] if row["text_b"] is None else f"{row['text']} ‖ {row['text_b']}"
                left.discard(number)
            if not left:
                break
        return found


def open_split(
    subject: Subject, split: str | None = None, name: str | None = None, config_dir: str | Path | None = None
) -> OpenSplit:
    """`split`: train, validation or test; None: test where there is one, else validation. `name`: a yaml of conf/data.

    Raises UserError for data that are not there or do not fit the run.
    """
    node = own_data(subject) if name is None else other_data(subject, name, config_dir)
    cache_dir = Path(subject.cfg.cache_dir).expanduser()
    tokenizer = subject.task.facts.tokenizer
    recipe = Pretrained(path=str(subject.run / "tokenizer.json"))
    data = make(node, tokenizer=recipe, seed=subject.cfg.seed, cache_dir=cache_dir)
    check_kind(subject, data, name)
    held = data.source()
    named = name is None and not any(key.startswith(("data.path", "data.hub")) for key in subject.typed)
    own = named or held.fingerprint() == subject.run.read_json("data.json").get("hash")  # the same, elsewhere
    inner, shown = choose(held, split, own)
    source = OneSplit(held, inner, inner if inner in ("validation", "test") else "test")
    if subject.task.facts.labels:
        data.known = subject.task.facts
    data.open(source, tokenizer)
    (inner,) = source.splits()
    if inner not in data.stores:
        raise UserError(f"{held.name} hides the labels of its test split; type --split validation")
    data.limits[inner] = node.get(LIMITS.get(shown, "test_limit"))
    data.connect(subject.task.collator(), subject.cfg.seed)
    subject.task.facts = data.facts
    return OpenSplit(data, source, shown, inner, own, differences(subject, source, own))


def own_data(subject: Subject) -> DictConfig:
    """The run's data, all of a split unless an override limits it."""
    cfg = subject.cfg if "data.path" in subject.typed else places.find(subject.cfg, subject.run, "data.path")
    node = OmegaConf.create(OmegaConf.to_container(cfg.data))
    for key in LIMITS.values():
        if f"data.{key}" not in subject.typed:
            node.pop(key, None)
    record = subject.run.read_json("data.json")
    if record.get("source", "").startswith("pydoc") and node.get("hub"):
        node.hub = None  # the hub was out of reach when the run was trained, and this is what it has learnt from
    return node


def other_data(subject: Subject, name: str, config_dir: str | Path | None) -> DictConfig:
    """Another data set of conf/data, cut into examples as the run's."""
    words = [word for word in subject.words if word.startswith("data.")]
    node = OmegaConf.create(OmegaConf.to_container(config.compose([f"data={name}", *words], config_dir).data))
    before = subject.cfg.data
    for key in (*KEPT, *LIMITS.values()):
        if f"data.{key}" not in subject.typed:
            node.pop(key, None)
            if key in KEPT and key in before and node._target_ == before._target_:
                node[key] = before[key]
    return node


def check_kind(subject: Subject, data: TextData, name: str | None) -> None:
    """Raises UserError where a classifier meets running text, or a language model labelled text."""
    labelled = hasattr(data, "classes")
    if labelled and not subject.task.facts.labels:
        raise UserError(f"--data {name} has labels, and the run is a language model; name running text, e.g. wikitext2")
    if subject.task.facts.labels and not labelled:
        raise UserError(f"--data {name} is running text, and the run is a classifier; name labelled data, e.g. sst2")


def choose(held: HeldOut, split: str | None, own: bool) -> tuple[str, str]:
    """The split's name in the source, and the one to show."""
    there = held.splits()
    split = WORDS.get(split, split)
    if split is not None and split not in SPLITS:
        raise UserError(f"--split {split}: no such split{nearest(split, SPLITS)}; there is {', '.join(there)}")
    if not own and len(held.source.splits()) == 1:  # a file given to be evaluated is meant as a whole
        held.cuts.clear()
        return "train", split or "all"
    if split is None:
        split = "test" if "test" in there else "validation"
    if split not in there:
        raise UserError(f"--split {split}: {held.name} has {', '.join(there)}; type one of them")
    return split, split


def differences(subject: Subject, source: OneSplit, own: bool) -> list[str]:
    """What makes figures differ from those of training, in words."""
    notes = [source.source.notice] if source.source.notice else []
    record = subject.run.read_json("data.json")
    if own and record.get("hash") != source.fingerprint():
        notes.append(f"{source.name} is not as it was when the run was trained: its content has changed")
    return notes
