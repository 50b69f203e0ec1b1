"""Options drawn at random: any combination is finite, causal, unmoved by padding, and the same with a cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tfm.models.config import WORDS
from lit_tfm.nn.cache import KVCache

SWITCHES = (
    "norm_weight",
    "gated",
    "qk_norm",
    "value_embeddings",
    "embedding_norm",
    "scale_embeddings",
    "bias",
    "tie_embeddings",
    "zero_init",
    "depth_scaled_init",
)
OPTIONS = st.fixed_dictionaries(
    {
        **{name: st.sampled_from(words) for name, words in WORDS.items()},
        **{name: st.booleans() for name in SWITCHES},
        "neighbours": st.integers(0, 3),
        "n_layers": st.integers(1, 3),
        "n_decoder_layers": st.integers(1, 2),
        "n_kv_heads": st.sampled_from([1, 2, 4]),
        "head_dim": st.sampled_from([None, 4, 8]),
        "attention_scale": st.sampled_from([None, 1.0]),
        "init_std": st.sampled_from([None, 0.1]),
    }
).map(lambda options: {**options, "packed_attention": "dense"} if options["positions"] in ("alibi", "t5") else options)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
@settings(max_examples=60, deadline=None)
@given(options=OPTIONS, seed=st.integers(0, 2**16))
def test_any_combination_keeps_the_promises(make, kind, options, seed):
    torch.manual_seed(seed)
    model, tokens, other = make(kind, **options), torch.randint(29, (2, 8)), torch.randint(29, (2, 8))
    changed = torch.cat((tokens[:, :5], other[:, 5:]), dim=1)
    mask = torch.arange(8).expand(2, 8) < 5
    with torch.no_grad():
        if kind == "encoder":
            out, again = model.hidden(tokens, mask), model.hidden(changed, mask)
        elif kind == "decoder":
            out, again = model.hidden(tokens), model.hidden(changed)
            near(cached(lambda part, cache: model.hidden(part, cache=cache), tokens), out)
        else:
            memory = model.encode(tokens, mask)
            near(model.encode(changed, mask)[:, :5], memory[:, :5])
            out, again = model.decode(tokens, memory, mask), model.decode(changed, memory, mask)
            near(cached(lambda part, cache: model.decode(part, memory, mask, cache=cache), tokens), out)
    assert out.isfinite().all()
    near(again[:, :5], out[:, :5])  # padding and future tokens were swapped for others


def cached(step, tokens):
    cache = KVCache(tokens.size(1))
    return torch.cat([step(tokens[:, i:j], cache) for i, j in ((0, 3), (3, 4), (4, 6), (6, 8))], dim=1)


def near(one, two):
    torch.testing.assert_close(one, two, atol=2e-4, rtol=2e-4)  # without norms (ReZero) values grow to hundreds
