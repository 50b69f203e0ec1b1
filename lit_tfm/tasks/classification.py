"""Classification of one text or a pair of them, with one label an example or several, on every architecture.

    encoder           a vector pooled from all tokens, then a linear layer
    decoder           the last token's vector, then a linear layer
    encoder-decoder   the label's text is written (tasks/label_text.py)

Letters: B examples, T tokens, L labels.
"""

from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix, MultilabelConfusionMatrix

from lit_tfm.data.facts import DataFacts
from lit_tfm.errors import UserError
from lit_tfm.models.decoder import Decoder
from lit_tfm.models.encoder import Encoder
from lit_tfm.models.encoder_decoder import EncoderDecoder
from lit_tfm.tasks import confusion
from lit_tfm.tasks.base import Batch, StepOutput, Task
from lit_tfm.tasks.label_text import LabelTextReadout
from lit_tfm.tasks.language import IGNORED
from lit_tfm.tasks.readout import LastTokenReadout, PooledReadout, Readout, label_losses
from lit_tfm.tasks.text_pairs import TextCollator


class Classification(Task):
    """Say which label a text has, or which labels.

    `pooling` (encoder): mean, max, first or attention. `head_dropout` (encoder, decoder): on the vector that is read.
    `label_texts` (encoder-decoder): what is written for each label, in the data's order; by default their names.
    `token_dropout`: the share of a training text's tokens replaced by the unknown token, a regulariser that also
    teaches what a word never seen looks like.

    `confusion` holds the counts of the last pass by stage: (L, L), rows true and columns predicted, or (L, 2, 2).
    """

    architectures = (Encoder, Decoder, EncoderDecoder)
    monitor, mode = "val/accuracy", "max"
    headline = ("accuracy", "macro_f1", "mcc", "loss")
    writes_nothing = "a classifier generates no text; predict does: it gives labels"
    head_share = 0.0  # no logits over the vocabulary, but for the few tokens of a label's text

    def __init__(
        self,
        *args,
        pooling: str = "mean",
        head_dropout: float = 0.0,
        token_dropout: float = 0.0,
        label_texts: list[str] | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        _check(self.facts, token_dropout)
        if self.facts.multi_label:
            self.monitor, self.headline = "val/macro_f1", ("macro_f1", "micro_f1", "subset_accuracy", "loss")
        self.token_dropout = token_dropout
        self.readout = choose_readout(self.model, self.facts, pooling, head_dropout, label_texts)
        self.counts = _counts(self.facts)
        self.confusion: dict[str, Tensor] = {}
        self._scores: Tensor | None = None  # of the batch being evaluated

    def collator(self) -> TextCollator:
        return TextCollator(
            self.facts.tokenizer, self.readout.lead, self.model.config.max_length, dropout=self.token_dropout
        )

    def step(self, batch: Batch) -> StepOutput:
        count = batch["counted"].sum()
        if self.training:
            loss, smoothed = self.readout.losses(self.model, self._drop(batch), self.label_smoothing)
            return StepOutput(loss.sum(), count, training_loss_sum=smoothed.sum())
        self._scores = self.scores(batch)
        return StepOutput(label_losses(self._scores, batch["labels"]).sum(), count, self._sums_of(self._scores, batch))

    def scores(self, batch: Batch) -> Tensor:
        """(B, L) logits of a softmax over labels, or of a sigmoid for each."""
        return self.readout.scores(self.model, batch)

    def probabilities(self, batch: Batch) -> Tensor:
        """(B, L), rows adding up to 1 unless an example may have several labels."""
        scores = self.scores(batch)
        return scores.sigmoid() if self.facts.multi_label else scores.softmax(1)

    def predict(self, scores: Tensor) -> Tensor:
        """(B,) class numbers, or (B, L) 0/1."""
        return (scores > 0).long() if self.facts.multi_label else scores.argmax(1)

    def _drop(self, batch: Batch) -> Batch:
        if "dropped" not in batch:
            return batch
        tokenizer = self.facts.tokenizer
        blank = tokenizer.unk_id if tokenizer.unk_id is not None else tokenizer.mask_id
        return {**batch, "input_ids": batch["input_ids"].masked_fill(batch["dropped"], blank)}

    def _sums_of(self, scores: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        if not self.facts.multi_label:
            return {}
        right = (self.predict(scores) == batch["labels"]).all(1)  # never so for a filler
        return {"subset_accuracy": (right.sum(), batch["counted"].sum())}

    def _evaluate(self, batch: Batch, stage: str) -> None:
        super()._evaluate(batch, stage)
        self.counts.update(self.predict(self._scores), batch["labels"])
        self._scores = None

    def report(self, means: dict[str, float], stage: str) -> dict[str, float]:
        matrix = self.counts.compute()  # collective: over all ranks
        self.counts.reset()
        self.confusion[stage] = matrix.cpu()
        metrics = confusion.multilabel if self.facts.multi_label else confusion.multiclass
        return {**means, **metrics(self.confusion[stage])}

    def samples(self, batch: Batch, decode=None, limit: int = 4) -> list[tuple[str, str]]:
        """Texts, and what was predicted and is true of them."""
        few = {key: value[:limit] if isinstance(value, Tensor) else value for key, value in batch.items()}
        pad = self.facts.tokenizer.pad_id
        predicted = self.predict(self.scores(few))
        return [
            (
                self.facts.tokenizer.decode(row[row != pad].tolist(), skip_special=False),
                f"predicted {self.named(guess)}; true {self.named(label)}",
            )
            for row, guess, label in zip(few["input_ids"], predicted, few["labels"], strict=True)
        ]

    def named(self, label: Tensor) -> str:
        """The name of a class number, or the names of a 0/1 vector."""
        numbers = label.nonzero().flatten().tolist() if self.facts.multi_label else [int(label)]
        return ", ".join(self.facts.labels[number] for number in numbers) or "none"


def choose_readout(
    model: nn.Module, facts: DataFacts, pooling: str, dropout: float, texts: list[str] | None
) -> Readout:
    """The one place that knows which architecture is read how."""
    table = {
        Encoder: lambda: PooledReadout(model, facts, pooling, dropout),
        Decoder: lambda: LastTokenReadout(model, facts, dropout),
        EncoderDecoder: lambda: LabelTextReadout(model, facts, texts),
    }
    return next(make for kind, make in table.items() if isinstance(model, kind))()


def _counts(facts: DataFacts) -> Metric:
    kind = MultilabelConfusionMatrix if facts.multi_label else MulticlassConfusionMatrix
    return kind(len(facts.labels), ignore_index=IGNORED, validate_args=False)


def _check(facts: DataFacts, token_dropout: float) -> None:
    if not facts.labels:
        raise UserError("task=classification needs data with labels; choose e.g. data=sst2 or data=pydoc_modules")
    if len(facts.labels) < 2 and not facts.multi_label:
        raise UserError(f"the only label is {facts.labels[0]!r}; classification needs two or more")
    if not 0 <= token_dropout < 1:
        raise UserError(f"task.token_dropout={token_dropout}; a share from 0 to below 1 is needed, e.g. 0.15")
    if token_dropout and facts.tokenizer.unk_id is None:
        facts.tokenizer.require("mask", task="task.token_dropout")
