"""The same model, asked by Hugging Face's `generate` and by ours, writes the same tokens.

Theirs gets our model in the thinnest of wrappers and no cache: each step reads all tokens anew.
"""

import pytest
import torch

from lit_tfm.generation.beams import Beams, beam_search
from lit_tfm.generation.decode import decode
from lit_tfm.generation.rules import RepetitionPenalty
from lit_tfm.generation.sampling import GREEDY, Sampling

transformers = pytest.importorskip("transformers", reason="pip install transformers: the comparison needs it")
outputs = pytest.importorskip("transformers.modeling_outputs")


class Wrapped(transformers.PreTrainedModel, transformers.GenerationMixin):
    """A task's model as one of theirs."""

    config_class = transformers.PretrainedConfig
    _supports_cache_class = False

    def __init__(self, task, **config):
        tokenizer = task.facts.tokenizer
        ids = {"eos_token_id": tokenizer.sep_id, "pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.cls_id}
        super().__init__(transformers.PretrainedConfig(vocab_size=tokenizer.vocab_size, **ids, **config))
        self.task = task
        self.generation_config = transformers.GenerationConfig(use_cache=False, **ids)
        self.generation_config.decoder_start_token_id = tokenizer.pad_id

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids, attention_mask=None, **kwargs):
        mask = None if attention_mask is None else attention_mask.bool()
        hidden = self.task.model.hidden(input_ids, attention_mask=mask)
        return outputs.CausalLMOutputWithPast(logits=self.task.head(hidden))


class Encoder(torch.nn.Module):
    main_input_name = "input_ids"

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask=None, **kwargs):
        return outputs.BaseModelOutput(last_hidden_state=self.model.encode(input_ids, attention_mask.bool()))


class WrappedBoth(Wrapped):
    """An encoder-decoder."""

    def __init__(self, task):
        super().__init__(task, is_encoder_decoder=True, decoder_start_token_id=task.facts.tokenizer.pad_id)

    def get_encoder(self, *args, **kwargs):
        return Encoder(self.task.model)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, encoder_outputs=None, **kwargs):
        return {"input_ids": input_ids, "attention_mask": attention_mask, "encoder_outputs": encoder_outputs}

    def forward(self, input_ids, attention_mask=None, encoder_outputs=None, **kwargs):
        memory = encoder_outputs.last_hidden_state
        hidden = self.task.model.decode(input_ids, memory, attention_mask.bool())
        return outputs.Seq2SeqLMOutput(logits=self.task.head(hidden))


def texts_of(tokenizer, n, length, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(tokenizer.id_of("a"), tokenizer.vocab_size, (n, length), generator=random)


def padded(texts, pad_id):
    """Rows of 3, 6, ... tokens on the left of one table; (B, T) tokens and mask."""
    longest = texts.shape[1]
    present = torch.arange(longest) >= longest - torch.tensor([[3], [longest], [6], [longest - 1]])[: len(texts)]
    return texts.masked_fill(~present, pad_id), present


def cut(rows, sep_id):
    """Up to the end token; behind it stands padding."""
    return [row[: row.index(sep_id) + 1] if sep_id in row else row for row in rows.tolist()]


@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("seed", range(3))
def test_greedy(make, letters, seed, penalty):
    task = make(seed=seed)
    prompt = texts_of(letters, 4, 9, seed)
    rules = () if penalty == 1 else (RepetitionPenalty(penalty),)
    theirs = Wrapped(task).generate(prompt, max_new_tokens=25, do_sample=False, repetition_penalty=penalty)
    ours = decode(task.reader(), prompt, 25, GREEDY, letters.sep_id, letters.pad_id, rules=rules)
    assert cut(ours, letters.sep_id) == cut(theirs[:, 9:], letters.sep_id)
    assert len(ours.unique()) > 4


def test_greedy_with_prompts_of_several_lengths(make, letters):
    task = make(positions="learned")
    prompt, present = padded(texts_of(letters, 4, 9), letters.pad_id)
    theirs = Wrapped(task).generate(prompt, attention_mask=present.long(), max_new_tokens=20, do_sample=False)
    ours = decode(task.reader(present), prompt, 20, GREEDY, letters.sep_id, letters.pad_id, present=present)
    assert cut(ours, letters.sep_id) == cut(theirs[:, 9:], letters.sep_id)


BEAMS = [
    Beams(2),
    Beams(4, length_penalty=0.0),
    Beams(3, length_penalty=2.0, early_stopping=True),
    Beams(4, length_penalty=-1.0),
    Beams(5, length_penalty=1.0, early_stopping="never"),
    Beams(3, early_stopping=True),
]


def likely_to_end(task, letters, by=2.0):
    """A model that ends its texts early enough for the search to have to choose among lengths."""
    bias = torch.zeros(letters.vocab_size)
    bias[letters.sep_id] = by
    task.head.bias = torch.nn.Parameter(bias)
    return task


@pytest.mark.parametrize("beams", BEAMS, ids=str)
@pytest.mark.parametrize("ends", [2.0, 5.0], ids=["late", "early"])
def test_beams(make, letters, beams, ends):
    task = likely_to_end(make(seed=1), letters, ends)
    prompt, present = padded(texts_of(letters, 4, 9, seed=3), letters.pad_id)
    theirs = Wrapped(task).generate(
        prompt, attention_mask=present.long(), max_new_tokens=14, do_sample=False, num_beams=beams.width,
        num_return_sequences=beams.width, length_penalty=beams.length_penalty, early_stopping=beams.early_stopping,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    ours = beam_search(task.reader(present), prompt, 14, beams, letters.sep_id, keep=beams.width, present=present)
    flat = [found for row in ours for found in row]
    assert [found.tokens.tolist() for found in flat] == cut(theirs.sequences[:, 9:], letters.sep_id)
    torch.testing.assert_close(torch.tensor([found.score for found in flat]), theirs.sequences_scores)
    assert len({len(found.tokens) for found in flat}) > 1 or ends == 2.0
    for found in flat:  # the log-probabilities are what the score is made of
        assert float(found.likely.sum()) / len(found.tokens) ** beams.length_penalty == pytest.approx(found.score, 1e-4)


def test_beams_with_a_repetition_penalty(make, letters):
    task = likely_to_end(make(seed=2), letters)
    prompt = texts_of(letters, 3, 7)
    theirs = Wrapped(task).generate(prompt, max_new_tokens=12, do_sample=False, num_beams=3, repetition_penalty=1.5)
    ours = beam_search(task.reader(), prompt, 12, Beams(3), letters.sep_id, rules=(RepetitionPenalty(1.5),))
    assert [row[0].tokens.tolist() for row in ours] == cut(theirs[:, 7:], letters.sep_id)


@pytest.mark.parametrize("beams", [None, Beams(3), Beams(4, 0.5, early_stopping=True)], ids=str)
@pytest.mark.parametrize("positions", ["rotary", "t5"])
def test_an_encoder_decoder(make, letters, beams, positions):
    task = likely_to_end(make("encoder_decoder", positions=positions), letters)
    text = texts_of(letters, 3, 11)
    present = torch.arange(11) < torch.tensor([[11], [4], [8]])
    options = {"max_new_tokens": 15, "do_sample": False}
    if beams is not None:
        options |= {"num_beams": beams.width, "length_penalty": beams.length_penalty}
        options |= {"early_stopping": beams.early_stopping}
    theirs = WrappedBoth(task).generate(text, attention_mask=present.long(), **options)[:, 1:]
    start = torch.full((3, 1), letters.pad_id)
    read = task.reader({"input_ids": text, "attention_mask": present})
    if beams is None:
        ours = cut(decode(read, start, 15, GREEDY, letters.sep_id, letters.pad_id), letters.sep_id)
    else:
        ours = [row[0].tokens.tolist() for row in beam_search(read, start, 15, beams, letters.sep_id)]
    assert ours == cut(theirs, letters.sep_id)


WARPED = [
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 7},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.1},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("options", WARPED, ids=str)
def test_tokens_are_drawn_from_the_same_distribution(make, letters, options, penalty):
    """Along a text that they drew, ours puts the same probability on every token at every step."""
    task, prompt, n = make(), texts_of(letters, 6, 5), 6
    torch.manual_seed(0)
    theirs = Wrapped(task).generate(
        prompt, max_new_tokens=n, do_sample=True, repetition_penalty=penalty, return_dict_in_generate=True,
        output_scores=True, eos_token_id=-1, **{"top_k": 0, **options},
    )  # fmt: skip
    drawn = theirs.sequences[:, 5:]

    class Same(Sampling):
        """Notes the distribution, and takes what they drew."""

        def choose(self, logits, position, rows=None):
            torch.testing.assert_close(self.distribution(logits), theirs.scores[position].softmax(-1))
            seen.append(position)
            return drawn[:, position]

    seen = []
    rules = () if penalty == 1 else (RepetitionPenalty(penalty),)
    assert torch.equal(decode(task.reader(), prompt, n, Same(**options), rules=rules), drawn)
    assert seen == list(range(n))


def test_and_as_often(make, letters):
    task, prompt, n = make(), texts_of(letters, 1, 5), 3000
    options = {"temperature": 0.8, "top_k": 8}
    torch.manual_seed(0)
    theirs = Wrapped(task).generate(prompt, max_new_tokens=1, do_sample=True, num_return_sequences=n, **options)[:, 5]
    ours = decode(task.reader(), prompt, 1, Sampling(**options, seed=3), samples=n)[:, 0]
    a, b = (torch.bincount(tokens, minlength=letters.vocab_size).double() for tokens in (theirs, ours))
    drawn = (a + b) > 0
    assert 3 <= drawn.sum() <= 8
    assert float(((a - b)[drawn] ** 2 / (a + b)[drawn]).sum()) < 24.3  # 7 degrees of freedom, p = 0.001
