"""Running text for language modelling: documents, tokenised into one stream and handed out in blocks.

Every document is stored as its separator followed by its tokens. So the first token of a document is predicted from
something, a model learns where documents end, and a document's number changes at the separator.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_tfm.data.bucketing import BucketedPlan
from lit_tfm.data.facts import SplitStats
from lit_tfm.data.holdout import HeldOut
from lit_tfm.data.module import TextData
from lit_tfm.data.packing import DocumentBlocks, StreamBlocks
from lit_tfm.data.sampling import Plan, SequentialPlan, ShuffledPlan
from lit_tfm.data.store import write_texts
from lit_tfm.data.tokenizers import Recipe, Tokenizer
from lit_tfm.errors import UserError, nearest

PACKS = ("stream", "documents")


class LanguageModelingData(TextData):
    """Blocks of tokens of any text.

    block_size:      tokens of a block, T.
    pack:            stream = blocks of the running text, hardly any padding; documents = no block reaches over the end
                     of a document, batches hold blocks of similar length.
    cross_documents: let attention reach over the borders of documents in a block.
    document:        what one document of a text file is: file, line, paragraph, wikitext (an article). Rows of
                     tables are documents.
    batch_size:      blocks of an optimizer step, over all ranks and micro-batches; batch_tokens instead of it divides
                     by block_size.
    The rest: see TextData.
    """

    def __init__(
        self,
        tokenizer: Recipe,
        block_size: int = 128,
        pack: str = "stream",
        cross_documents: bool = False,
        batch_size: int | None = 32,
        document: str = "file",
        **options: Any,
    ) -> None:
        self.block_size, self.pack, self.cross_documents = block_size, pack, cross_documents
        super().__init__(tokenizer, batch_size=batch_size, **options)
        self.files["document"] = document

    def _check(self) -> None:
        super()._check()
        if self.pack not in PACKS:
            raise UserError(f"data.pack={self.pack}: unknown{nearest(self.pack, PACKS)}; there is {', '.join(PACKS)}")
        if self.block_size < 2:
            raise UserError(f"data.block_size={self.block_size}: must be 2 or more")

    # ---- storing --------------------------------------------------------------------------------------------------

    def texts(self, source: HeldOut, split: str) -> Iterator[str]:
        return source.documents(split)

    def layout(self) -> Any:
        return "separator first"

    def build(self, folder: Path, source: HeldOut, split: str, tokenizer: Tokenizer) -> None:
        tokenizer.require("sep", task="language modelling")
        write_texts(folder, source.documents(split), tokenizer, first=tokenizer.sep_id)

    # ---- examples and batches -------------------------------------------------------------------------------------

    def make_dataset(self, split: str) -> StreamBlocks | DocumentBlocks:
        store, subset = self.stores[split], self.limits["train"]
        options = {"extra": self.extra_tokens, "cross_documents": self.cross_documents}
        if self.pack == "documents":
            return DocumentBlocks(store, self.block_size, **options)
        if split != "train":
            return StreamBlocks(store, self.block_size, **options)
        limit = None if subset is None else subset * self.block_size
        return StreamBlocks(store, self.block_size, **options, limit=limit, seed=self.seed)

    def make_plan(
        self, split: str, dataset: StreamBlocks | DocumentBlocks, batch_size: int | None, batch_tokens: int | None
    ) -> Plan:
        training, limit = split == "train", self.limits[split]
        if batch_tokens is not None:
            batch_size = max(1, batch_tokens // self.block_size)
        if self.pack == "documents":
            budget = batch_tokens or batch_size * self.block_size
            return BucketedPlan(dataset.lengths, self.seed, budget, shuffle=training, limit=limit)
        if training:
            return ShuffledPlan(len(dataset), batch_size, self.seed)
        return SequentialPlan(len(dataset), batch_size, limit)

    def stats(self, split: str) -> SplitStats:
        store, dataset = self.stores[split], self.make_dataset(split)
        plan = self.make_plan(split, dataset, self.batch_size, self.batch_tokens)
        documents = self.pack == "documents"
        return SplitStats(
            documents=len(store),
            tokens=dataset.n_tokens,
            bytes=store.meta["bytes"],
            words=store.meta["words"],
            wasted_tokens=plan.wasted_tokens() if documents else dataset.wasted_tokens,
            examples=len(plan.samples) if documents else len(dataset),
            unknown_tokens=store.meta["unknown"],
        )
