"""What a source of text is: named splits of documents (language modelling) or of rows (classification)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

SPLITS = ("train", "validation", "test")


class Source(ABC):
    """Where text comes from. Cheap to make; text is read only when asked for, and may be asked for again.

    `name` is what a run's records call it and `origin` its kind ("files", "hub", "pydoc"). `labels` gives the class
    names in order where the source knows them. `running` says that the documents of the training split follow one
    another in one text, so that validation is cut off its end and not drawn from it. `notice` is something a person
    must see before training (another data set than asked for), None when there is nothing.
    """

    name: str
    origin: str
    labels: tuple[str, ...] | None = None
    running: bool = False
    notice: str | None = None

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the content and of how it is read: equal fingerprints mean equal documents and rows."""

    @abstractmethod
    def splits(self) -> list[str]:
        """Those of train, validation and test that there are, in this order."""

    @abstractmethod
    def documents(self, split: str) -> Iterator[str]:
        """The texts of a split, in a fixed order."""

    @abstractmethod
    def rows(self, split: str) -> Iterator[dict]:
        """Examples of a split: `text`, `text_b` (None without a second text) and `label`: a name, a list of names
        (several labels may hold at once), or None where the source hides it."""
