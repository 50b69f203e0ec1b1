"""Attention heat maps of one fixed text: what every head of every layer looks at, in one picture a kind of attention.

The text takes the way of a training example: the task's collator masks it, cuts spans out of it or puts its special
tokens around it. So a picture shows the model at its own work, and the same work at every validation: the noise is a
pure function of the example's key.

Letters: L layers, H heads, T tokens that look, S tokens that are looked at.
"""

from dataclasses import dataclass

import numpy as np
import torch
from lightning import Callback, Trainer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lit_tfm.callbacks.gathered import gathered, looking
from lit_tfm.callbacks.tensorboard import boards
from lit_tfm.data.sampling import Key
from lit_tfm.data.tokenizers import Tokenizer
from lit_tfm.models.encoder_decoder import EncoderDecoder
from lit_tfm.tasks.base import Batch, Task

TEXT = "The cat that the dogs had chased was tired, so it slept."


@dataclass(frozen=True)
class Attention:
    """One kind of attention: weights (L, H, T, S), each row adding up to 1, and the tokens as texts."""

    name: str  # encoder, decoder or cross
    weights: np.ndarray
    looking: list[str]  # T
    seen: list[str]  # S


class AttentionMaps(Callback):
    """`pictures/attention_*` in TensorBoard at the first validation, at every `every`th, and at the end of the run.

    `text` is cut after `tokens` tokens. Does nothing without TensorBoard, or for a task whose collator wants other
    examples than a text.
    """

    def __init__(self, text: str = TEXT, tokens: int = 20, every: int = 5) -> None:
        self.text, self.tokens, self.every = text, tokens, every
        self._validations = 0

    def on_validation_end(self, trainer: Trainer, pl_module: Task) -> None:
        # Everything that decides is the same on all ranks.
        if trainer.state.fn != "fit" or trainer.sanity_checking or not boards(trainer):
            return
        if self._validations % self.every == 0 or trainer.should_stop:
            self._draw(trainer, pl_module)
        self._validations += 1

    def _draw(self, trainer: Trainer, task: Task) -> None:
        try:
            batch = probe(task, self.text, self.tokens)
        except KeyError:  # a collator of other examples
            return
        with looking(trainer, task):
            found = attend(task, batch)
            for logger in boards(trainer) if trainer.is_global_zero else []:
                for attention in found:
                    picture = np.asarray(draw(attention))
                    name = f"pictures/attention_{attention.name}"
                    logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")


def probe(task: Task, text: str, tokens: int) -> Batch:
    """The text as a batch of one, on the task's device. Raises KeyError where the collator needs more than a text.

    No longer than the model has positions for, with two special tokens.
    """
    tokenizer = task.facts.tokenizer
    ids = tokenizer.encode(text)[: min(tokens, max(1, task.model.config.max_length - 2))]
    if task.facts.labels is None and tokenizer.sep_id is not None:
        ids = np.concatenate([[tokenizer.sep_id], ids])  # as running text is stored: separator first
    example = {"tokens": ids.astype(np.int64), "tokens_b": None, "document_ids": None, "label": 0, "key": Key(0, 0)}
    batch = task.collator()([example])
    return {name: value.to(task.device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def attend(task: Task, batch: Batch) -> list[Attention]:
    """Attention of a batch's first row, of each kind that the model has. Under FSDP2 every rank has to call it."""
    names = [name for name in ("input_ids", "attention_mask") if name in batch]
    inputs = {name: batch[name][:1] for name in names}
    with torch.no_grad():
        if isinstance(task.model, EncoderDecoder):
            return gathered(task, lambda: _both_sides(task, inputs, batch))
        _, own = gathered(task, lambda: task.model.hidden(**inputs, return_attention=True))
    return [_named(task.model.kind, own, inputs["input_ids"], inputs["input_ids"], task.facts.tokenizer)]


def _both_sides(task: Task, inputs: Batch, batch: Batch) -> list[Attention]:
    memory, encoder = task.model.encode(**inputs, return_attention=True)
    source, tokenizer = inputs["input_ids"], task.facts.tokenizer
    if "decoder_input_ids" in batch:
        target = batch["decoder_input_ids"][:1]
    else:  # a label's text is written: what its first word is drawn from
        start = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.sep_id
        target = source.new_full((1, 1), start)
    _, weights = task.model.decode(target, memory, inputs.get("attention_mask"), return_attention=True)
    found = [_named("encoder", encoder, source, source, tokenizer)]
    if target.shape[1] > 1:
        found.append(_named("decoder", weights.own, target, target, tokenizer))
    return [*found, _named("cross", weights.cross, target, source, tokenizer)]


def _named(name: str, weights: list[Tensor], looking: Tensor, seen: Tensor, tokenizer: Tokenizer) -> Attention:
    stacked = torch.stack([layer[0].float() for layer in weights]).cpu().numpy()  # (L, H, T, S)
    rows, columns = ([visible(tokenizer.token(i)) for i in ids[0].tolist()] for ids in (looking, seen))
    return Attention(name, stacked, rows, columns)


def visible(token: str) -> str:
    """A vocabulary entry as a label: blanks and control characters would be gaps."""
    names = {" ": "␣", "\n": "↵", "\t": "→", "Ġ": "␣", "▁": "␣", "Ċ": "↵"}
    shown = "".join(names.get(sign, sign if sign.isprintable() else "�") for sign in token)
    return shown or "∅"


# ---- the picture -----------------------------------------------------------------------------------------------
# Drawn sign by sign on one image: matplotlib takes a second for as many axes as there are heads.

CELL = 13  # pixels of one weight
GAP = 10  # between two heads
MARGIN = 26  # for the numbers of layers and heads
LARGEST = 2600  # pixels of a side; cells shrink for models of many heads
LONGEST = 14  # signs of a label


def draw(attention: Attention) -> Image.Image:
    """Layers from top to bottom, heads from left to right; in each, rows look at columns. Darker: more."""
    layers, heads, rows, columns = attention.weights.shape
    across, down = (min(CELL, LARGEST // (count * size)) for count, size in ((heads, columns), (layers, rows)))
    cell = max(2, min(across, down))
    font, large = _font(max(8, cell - 2)), _font(13)
    sides = (attention.looking, attention.seen)
    left, bottom = (int(max(font.getlength(short(text)) for text in side)) for side in sides)
    left += MARGIN + 8
    width, height = columns * cell + GAP, rows * cell + GAP
    image = Image.new("RGB", (left + heads * width + GAP, MARGIN + layers * height + bottom), "white")
    pen = ImageDraw.Draw(image)
    for layer, head in np.ndindex(layers, heads):
        corner = (left + head * width, MARGIN + layer * height)
        block = _colours(attention.weights[layer, head]).repeat(cell, axis=0).repeat(cell, axis=1)
        image.paste(Image.fromarray(block), corner)
        pen.rectangle(
            (corner[0] - 1, corner[1] - 1, corner[0] + columns * cell, corner[1] + rows * cell), outline="#999"
        )
    for head in range(heads):
        x = left + head * width
        pen.text((x + columns * cell / 2, 6), f"head {head + 1}", fill="black", font=large, anchor="ma")
        if cell >= 8:
            _below(image, attention.seen, x, MARGIN + layers * height - GAP + 5, cell, font)
    for layer in range(layers):
        y = MARGIN + layer * height
        name = f"layer {layer + 1}" if rows * cell > 60 else str(layer + 1)
        _upright(image, name, 4, y + rows * cell // 2, large)
        for number, text in enumerate(attention.looking if cell >= 8 else []):
            middle = y + number * cell + cell / 2
            pen.text((left - 6, middle), short(text), fill="black", font=font, anchor="rm")
    return image


def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # optional: a heavy package, needed for the first picture alone

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)  # with many alphabets


def _colours(weights: np.ndarray) -> np.ndarray:
    """(T, S) in [0, 1] -> (T, S, 3): white to dark blue. By the root, or all but the strongest would look white."""
    share = np.sqrt(np.clip(weights, 0.0, 1.0))[..., None]
    return (255 + share * (np.array([8, 48, 107]) - 255)).astype(np.uint8)


def _below(image: Image.Image, texts: list[str], x: int, y: int, cell: int, font: ImageFont.FreeTypeFont) -> None:
    for number, text in enumerate(texts):
        label = _turned(short(text), font)
        image.paste(label, (x + number * cell + (cell - label.width) // 2, y))


def _upright(image: Image.Image, text: str, x: int, middle: int, font: ImageFont.FreeTypeFont) -> None:
    label = _turned(text, font)
    image.paste(label, (x, middle - label.height // 2))


def _turned(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Text that is read from bottom to top."""
    box = font.getbbox(text, anchor="ls")
    label = Image.new("RGB", (max(1, int(box[2]) + 1), font.size + 4), "white")
    ImageDraw.Draw(label).text((0, font.size), text, fill="black", font=font, anchor="ls")
    return label.rotate(90, expand=True)


def short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


# ---- in numbers ------------------------------------------------------------------------------------------------


def habits(attention: Attention) -> list[dict[str, float]]:
    """What each head does on the whole: its mean weight on the token itself, the one before, and the first one.

    `bits` is the mean entropy of a row: 0 = one token is looked at, log2(S) = all alike. Of cross-attention, whose rows
    and columns are different texts, only `first` and `bits`.
    """
    rows = []
    for layer, head in np.ndindex(attention.weights.shape[:2]):
        weights = attention.weights[layer, head].astype(float)  # (T, S)
        row = {"layer": layer + 1, "head": head + 1}
        if attention.name != "cross":
            row |= {"itself": np.diagonal(weights).mean(), "before": np.diagonal(weights, -1).mean()}
        bits = -np.sum(weights * np.log2(np.where(weights > 0, weights, 1.0)), axis=1)
        rows.append({**row, "first": weights[:, 0].mean(), "bits": bits.mean()})
    return rows
