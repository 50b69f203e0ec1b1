"""Tiny models in which every option shows: nothing starts at zero, gains and biases are not at their neutral values."""

import pytest
import torch

from lit_tfm.models.decoder import Decoder
from lit_tfm.models.encoder import Encoder
from lit_tfm.models.encoder_decoder import EncoderDecoder

ARCHITECTURES = {"encoder": Encoder, "decoder": Decoder, "encoder_decoder": EncoderDecoder}
VOCABULARY = 29


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(kind: str, **options) -> torch.nn.Module:
    sizes = {"vocab_size": VOCABULARY, "d_model": 24, "n_layers": 2, "n_heads": 4, "d_ff": 32, "max_length": 24}
    model = ARCHITECTURES[kind](**{**sizes, "zero_init": False, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.fixture(scope="session")
def make():
    return build


@pytest.fixture(scope="session")
def ids():
    def draw(batch: int, length: int) -> torch.Tensor:
        return torch.randint(0, VOCABULARY, (batch, length))

    return draw
