import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lit_tfm.models.cost import flops_per_token, parameters
from lit_tfm.nn.heads import LMHead

GROUPED = {"n_kv_heads": 2, "gated": True}
ODD = {"head_dim": 8, "n_layers": 1, "n_decoder_layers": 3, "neighbours": 2}


@pytest.mark.parametrize("options", [{}, GROUPED, ODD], ids=["plain", "grouped", "odd"])
@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
def test_the_formula_counts_what_torch_counts(make, ids, kind, options):
    """Against torch's counter on the math path, which it counts without the recomputation of flash kernels."""
    batch, length, target = 2, 24, 16
    model = make(kind, d_model=32, d_ff=None, **options).train()
    head, source = LMHead(32, 29), ids(batch, length)
    arguments = (source, ids(batch, target)) if kind == "encoder_decoder" else (source,)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        head(model.hidden(*arguments)).sum().backward()
    tokens = sum(argument.numel() for argument in arguments)
    told = flops_per_token(model.config, length, kind, target_length=target)
    assert told * tokens == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_only_so_many_logits(make, ids):
    config = make("encoder").config
    head = 6 * config.d_model * config.vocab_size
    whole, part, none = (flops_per_token(config, 24, "encoder", head_share=share) for share in (1.0, 0.15, 0.0))
    assert whole - part == pytest.approx(0.85 * head)
    assert whole - none == pytest.approx(head)


def test_shared_parameters_count_once(make):
    model = make("decoder", tie_embeddings=True)
    both = torch.nn.ModuleList([model, LMHead(24, 29, tied=model.embedding)])
    assert parameters(both) == parameters(model)
