import subprocess
import sys
from dataclasses import fields

import pytest

from lit_tfm.errors import UserError
from lit_tfm.models.config import WORDS, TransformerConfig
from lit_tfm.nn.feed_forward import ACTIVATIONS
from lit_tfm.nn.positions import SCHEMES


def test_it_needs_no_torch():
    code = "import sys, lit_tfm.models.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_words_are_those_of_the_blocks():
    assert WORDS["activation"] == tuple(ACTIVATIONS)
    assert WORDS["positions"] == SCHEMES


def test_derived_numbers():
    plain = TransformerConfig(vocab_size=10, d_model=256, n_heads=4)
    assert (plain.n_kv_heads, plain.head_dim, plain.d_ff, plain.n_decoder_layers) == (4, 64, 1024, 4)
    gated = TransformerConfig(vocab_size=10, d_model=256, gated=True)
    assert gated.d_ff == 704  # 8/3 of 256 is 682.7
    told = TransformerConfig(vocab_size=10, d_model=256, n_heads=4, head_dim=32, n_kv_heads=2, d_ff=7)
    assert (told.n_kv_heads, told.head_dim, told.d_ff) == (2, 32, 7)


MISTAKES = {
    "d_model=10 is not divisible by model.n_heads=4; type model.n_heads=5, or model.d_model=12": {
        "d_model": 10,
        "n_heads": 4,
    },
    "model.n_heads=8 is not divisible by model.n_kv_heads=3; type one of model.n_kv_heads=1, 2, 4, 8": {
        "n_kv_heads": 3
    },
    "model.head_dim=4": {"d_model": 24, "n_heads": 8, "head_dim": None},
    "model.d_model=4": {"d_model": 3, "n_heads": 1, "positions": "sinusoidal"},
    "did you mean 'layer'?": {"norm": "layr"},
    "did you mean 'rotary'?": {"positions": "rotory"},
    "did you mean 'relu2'?": {"activation": "rellu2"},
    "pre, post, rezero": {"norm_position": "sandwich"},
    "model.n_layers=0; a whole number of at least 1": {"n_layers": 0},
    "model.d_model=512.0; a whole number": {"d_model": 512.0},
    "model.d_model=big; a whole number": {"d_model": "big"},
    "model.n_heads=0; a whole number": {"n_heads": 0},
    "model.n_segments=-1": {"n_segments": -1},
    "model.gated=yes; type model.gated=true": {"gated": "yes"},
    "model.dropout=1.0": {"dropout": 1.0},
    "model.dropout=much": {"dropout": "much"},
    "model.softcap=0": {"softcap": 0},
    "model.softcap=high": {"softcap": "high"},
    "model.norm_eps=0": {"norm_eps": 0},
    "model.position_buckets=30": {"position_buckets": 30, "positions": "t5"},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_one_line_that_says_what_to_type(message):
    with pytest.raises(UserError) as caught:
        TransformerConfig(**{"vocab_size": 10, **MISTAKES[message]}).check()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "model." in str(caught.value)


def test_odd_heads_are_fine_without_rotation():
    TransformerConfig(vocab_size=10, d_model=24, n_heads=8, positions="alibi").check()


def test_every_field_says_its_type():
    assert all(not isinstance(field.type, str) for field in fields(TransformerConfig))  # `check` reads them
