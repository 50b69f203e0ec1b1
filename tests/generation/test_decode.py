"""The decode loop with a cache writes what a loop without one does."""

from functools import partial

import pytest
import torch

from lit_tfm.data.facts import DataFacts
from lit_tfm.data.tokenizers import Char
from lit_tfm.generation.decode import decode
from lit_tfm.generation.sampling import GREEDY, Sampling
from lit_tfm.models.decoder import Decoder
from lit_tfm.models.encoder_decoder import EncoderDecoder
from lit_tfm.optim.adamw import adamw
from lit_tfm.optim.schedules import constant
from lit_tfm.tasks.causal_lm import CausalLM
from lit_tfm.tasks.span_corruption import SpanCorruption

TOKENIZER = Char(sentinels=20).train(["abcdefghijklmnopqrstuvwxyz "])
SEP, PAD = TOKENIZER.sep_id, TOKENIZER.pad_id
SCHEMES = ("none", "sinusoidal", "learned", "rotary", "alibi", "t5")


def make(kind, architecture, **options):
    torch.manual_seed(0)
    # Not zero_init: an untrained model should say something. A large head makes it decided.
    model = architecture(
        vocab_size=TOKENIZER.vocab_size, d_model=32, n_layers=2, n_heads=2, max_length=40, zero_init=False, **options
    )
    facts = DataFacts(tokenizer=TOKENIZER, splits={})
    return kind(model=model, facts=facts, optimizer=partial(adamw), schedule=constant).eval()


def prompts(n, length, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(25, TOKENIZER.vocab_size, (n, length), generator=random)


@torch.no_grad()
def plain(logits_of, prompt, n, sampling=GREEDY):
    """Without cache, all tokens anew each time."""
    tokens = prompt
    for position in range(n):
        token = sampling.choose(logits_of(tokens), position)
        tokens = torch.cat([tokens, token[:, None]], dim=1)
    return tokens[:, prompt.shape[1] :]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.9, top_k=10, seed=3)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("positions", SCHEMES)
def test_a_decoder_with_its_cache(positions, sampling):
    task = make(CausalLM, Decoder, positions=positions)
    prompt = prompts(5, 7)
    expected = plain(lambda tokens: task.head(task.model.hidden(tokens)[:, -1]), prompt, 20, sampling)
    assert torch.equal(decode(task.reader(), prompt, 20, sampling), expected)
    assert len(expected.unique()) > 3  # it is no constant answer that is compared


@pytest.mark.parametrize("positions", SCHEMES)
def test_an_encoder_decoder_with_its_cache(positions):
    task = make(SpanCorruption, EncoderDecoder, positions=positions)
    inputs = {"input_ids": prompts(4, 11), "attention_mask": torch.arange(11) < torch.tensor([[11], [5], [9], [1]])}
    with torch.no_grad():
        memory = task.model.encode(**inputs)
    start = torch.full((4, 1), PAD)
    expected = plain(
        lambda tokens: task.head(task.model.decode(tokens, memory, inputs["attention_mask"])[:, -1]), start, 15
    )
    assert torch.equal(decode(task.reader(inputs), start, 15), expected)


@pytest.mark.parametrize("positions", SCHEMES)
def test_prompts_of_several_lengths_are_padded_on_the_left(positions):
    task = make(CausalLM, Decoder, positions=positions)
    lengths, longest = [3, 9, 6], 9
    texts = [prompts(1, n, seed=n) for n in lengths]
    padded = torch.cat(
        [torch.nn.functional.pad(text, (longest - n, 0), value=PAD) for text, n in zip(texts, lengths, strict=True)]
    )
    mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    together = decode(task.reader(mask), padded, 12)
    for text, written in zip(texts, together, strict=True):
        assert torch.equal(decode(task.reader(), text, 12)[0], written)


class Script:
    """A reader that dictates: row r writes script[r]."""

    def __init__(self, script):
        self.script, self.calls = torch.tensor(script), 0

    def __call__(self, tokens):
        logits = torch.nn.functional.one_hot(self.script[:, self.calls], 30).float()
        self.calls += 1
        return logits


def test_rows_end_with_the_stop_token():
    script = [[7, SEP, 8, 8, 8, 8], [9, 9, 9, SEP, 8, 8]]
    reader = Script(script)
    written = decode(reader, prompts(2, 3), 6, stop_id=SEP, pad_id=PAD)
    assert written.tolist() == [[7, SEP, PAD, PAD], [9, 9, 9, SEP]]
    assert reader.calls == 4  # nothing is computed after the last row has ended
    reader = Script(script)
    written = decode(reader, prompts(2, 3), 6, stop_id=SEP, pad_id=PAD, lockstep=True)
    assert written.tolist() == [[7, SEP, PAD, PAD, PAD, PAD], [9, 9, 9, SEP, PAD, PAD]]
    assert reader.calls == 6
    assert decode(Script(script), prompts(2, 3), 6).tolist() == script


def test_no_token_asked():
    assert decode(Script([[1]]), prompts(1, 3), 0).shape == (1, 0)


def test_up_to_the_last_position():
    """The last token needs no place of its own: it is written, not read."""
    task = make(CausalLM, Decoder, positions="learned")
    assert decode(task.reader(), prompts(2, 10), 31).shape == (2, 31)
