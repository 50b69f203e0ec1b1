"""What a data set says about itself to the model, the task and the person: known once `prepare_data` has run."""

from dataclasses import dataclass

from lit_tfm.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class SplitStats:
    """One split, counted in full (`val_limit` does not change it)."""

    documents: int
    tokens: int  # of the texts and the separators stored with them; what a language model is to predict
    bytes: int  # UTF-8, of the texts as they were read
    words: int  # between white space, and one for each line end: the WikiText convention
    wasted_tokens: int  # padding of an epoch
    examples: int  # blocks, or rows of a classification set
    unknown_tokens: int = 0  # words or characters the tokenizer has no token for
    truncated: int = 0  # examples cut at max_length


@dataclass(frozen=True)
class DataFacts:
    tokenizer: Tokenizer
    splits: dict[str, SplitStats]  # "train", "validation" and, where there is one, "test"
    labels: tuple[str, ...] | None = None  # classification; the position is the class number
    multi_label: bool = False  # labels of an example are a 0/1 vector instead of one number
