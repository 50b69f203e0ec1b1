"""What all three architectures promise: padding, documents, the future, weights, checkpointing, precision."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_tfm.errors import UserError
from lit_tfm.nn.positions import SCHEMES
from lit_tfm.optim.muon import parts_of

KINDS = ("encoder", "decoder", "encoder_decoder")
RELATIVE = ("none", "rotary", "alibi", "t5")
RICH = {"neighbours": 2, "n_kv_heads": 2, "value_embeddings": True, "norm_weight": True, "bias": True}


def run(model, ids, mask=None, documents=None, **more):
    """Hidden states of any architecture; the decoder of an encoder-decoder gets the same tokens reversed."""
    if model.kind != "encoder_decoder":
        return model.hidden(ids, attention_mask=mask, document_ids=documents, **more)
    names = {"decoder_attention_mask": mask, "decoder_document_ids": documents}
    return model.hidden(ids, (ids * 7 + 3) % 29, attention_mask=mask, document_ids=documents, **names, **more)


def embedded_gradients(model, call, at):
    """Gradient of the hidden state at token `at` with respect to everything looked up for the (decoder's) tokens."""
    looked_up = []

    def keep(module, args, output):
        output.retain_grad()
        looked_up.append(output)

    stack = model.decoder if model.kind == "encoder_decoder" else model
    hooks = [model.embedding.register_forward_hook(keep)]
    hidden = call()
    rows = [looked_up[-1]]  # the encoder's lookup comes first
    if stack.value_embedding is not None:
        looked_up.clear()
        hooks.append(stack.value_embedding.register_forward_hook(keep))
        hooks.append(model.embedding.register_forward_hook(keep))
        hidden = call()
        rows = looked_up[-2:]
    hidden[:, at].square().sum().backward()
    for hook in hooks:
        hook.remove()
    return [row.grad for row in rows]


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_no_gradient_reaches_the_future(make, ids, kind, masked, name):
    model, tokens = make(kind, positions=name, **RICH), ids(2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool) if masked else None
    for at in (0, 4, 8):
        for grad in embedded_gradients(model, lambda: run(model, tokens, mask), at):
            assert grad[:, at + 1 :].abs().sum() == 0
            assert (grad[:, : at + 1].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_an_encoder_looks_both_ways(make, ids, name):
    model, tokens = make("encoder", positions=name, **RICH), ids(2, 9)
    for grad in embedded_gradients(model, lambda: run(model, tokens), 4):
        assert (grad.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(make, ids, kind, name, side):
    model, tokens, pad = make(kind, positions=name, **RICH), ids(3, 6), ids(3, 4)
    order = (tokens, pad) if side == "right" else (pad, tokens)
    padded = torch.cat(order, dim=1)
    real = torch.cat([torch.full_like(part, part is tokens, dtype=torch.bool) for part in order], dim=1)
    real[0] = True  # one full row beside the padded ones
    out = run(model, padded, real)
    assert out.isfinite().all()
    torch.testing.assert_close(out[0], run(model, padded)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[1:][real[1:]].view(2, 6, -1), run(model, tokens)[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_nothing_but_padding_harms_no_one(make, ids, kind):
    """Fillers that keep ranks in step may be empty: neither their output nor any gradient may be NaN."""
    model, tokens = make(kind, **RICH), ids(2, 5)
    mask = torch.tensor([[True] * 5, [False] * 5])
    out = run(model, tokens, mask)
    torch.testing.assert_close(out[0], run(model, tokens)[0], atol=1e-5, rtol=1e-5)
    out[0].square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", RELATIVE)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_are_as_if_alone(make, ids, kind, name):
    model, parts = make(kind, positions=name, **RICH), [ids(2, n) for n in (4, 1, 6)]
    documents = torch.cat([torch.full_like(part, i) for i, part in enumerate(parts)], dim=1)
    packed = run(model, torch.cat(parts, dim=1), documents=documents)
    alone = torch.cat([run(model, part) for part in parts], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    assert (packed - run(model, torch.cat(parts, dim=1))).abs().max() > 1e-3


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_from_the_twin_and_change_nothing(make, ids, kind, name):
    model, tokens = make(kind, positions=name, **RICH), ids(2, 7)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:] = False
    hidden, weights = run(model, tokens, mask, return_attention=True)
    torch.testing.assert_close(hidden, run(model, tokens, mask), atol=1e-5, rtol=1e-5)
    own = weights.own if kind == "encoder_decoder" else weights
    assert [w.shape for w in own] == [(2, 4, 7, 7)] * 2
    torch.testing.assert_close(own[0].sum(-1), torch.ones(2, 4, 7))
    assert own[1][0, :, :5, 5:].abs().max() == 0
    if kind == "encoder_decoder":
        assert [w.shape for w in weights.cross] == [(2, 4, 7, 7)] * 2
        assert weights.cross[1][0, :, :, 5:].abs().max() == 0


@pytest.mark.parametrize("name", ["rotary", "t5"])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_gives_the_same_gradients(make, ids, kind, name):
    """With dropout: the second forward has to repeat the first one's draw."""
    tokens, grads = ids(2, 7), []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = make(kind, positions=name, dropout=0.2, activation_checkpointing=checkpointing, **RICH).train()
        forwards = []
        block = (model.decoder if kind == "encoder_decoder" else model).blocks[0]
        block.register_forward_pre_hook(lambda *_, seen=forwards: seen.append(1))
        torch.manual_seed(2)
        run(model, tokens).square().sum().backward()
        assert len(forwards) == 1 + checkpointing
        grads.append({n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_runs_and_is_near(make, ids, kind, name):
    model, tokens = make(kind, positions=name, **RICH), ids(2, 7)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:] = False
    for masks in (None, mask):
        with torch.autocast("cpu", torch.bfloat16):
            low = run(model, tokens, masks)
        low.float().square().sum().backward()
        torch.testing.assert_close(low.float(), run(model, tokens, masks), atol=0.15, rtol=0.1)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_true_bf16_runs(make, ids, kind, name):
    model, tokens = make(kind, positions=name, **RICH).bfloat16(), ids(2, 7)
    for mask in (None, torch.ones(2, 7, dtype=torch.bool)):
        assert run(model, tokens, mask).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_unmasked_attention_stays_on_the_fast_kernel(make, ids, kind):
    """A mask where none is needed costs the flash kernel: SDPA then refuses, as only flash is allowed here."""
    model, tokens = make(kind, n_kv_heads=2), ids(2, 7)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        run(model, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_only_weights_are_saved(make, kind):
    model = make(kind, positions="rotary")
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_born_on_meta_can_be_brought_to_life(make, ids, kind, name):
    source = make(kind, positions=name, **RICH)
    with torch.device("meta"):
        model = type(source)(**{f: getattr(source.config, f) for f in source.config.__dataclass_fields__})
    model = model.to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        torch.nn.init.constant_(tensor, torch.nan)
    model.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in (*model.parameters(), *model.buffers()))
    model.load_state_dict(source.state_dict())
    tokens = ids(2, 7)
    torch.testing.assert_close(run(model, tokens), run(source, tokens))


@pytest.mark.parametrize("name", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("kind", KINDS)
def test_beyond_its_positions_a_model_says_what_to_do(make, ids, kind, name):
    model = make(kind, positions=name, max_length=8)
    run(model, ids(1, 8))
    with pytest.raises(UserError, match=r"9 tokens.*model\.max_length=9"):
        run(model, ids(1, 9))


@pytest.mark.parametrize("name", ["none", "alibi", "t5"])
def test_without_tables_there_is_no_limit(make, ids, name):
    run(make("decoder", positions=name, max_length=8), ids(1, 20))


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_matrices_are_the_2d_parameters_of_blocks(make, kind):
    """Muon takes its parameters by this rule."""
    model = make(kind, positions="learned", **RICH)
    inside = {name for name, p in model.named_parameters() if "blocks." in name and p.ndim == 2}
    linears = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert inside == linears


@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_offsets_are_parts_of_their_matrices(make, kind):
    """Muon takes each by itself."""
    options = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "neighbours": 1}
    parts = parts_of(make(kind, **options))
    sizes = {"qkv.weight": (8,) * 8, "q.weight": (8,) * 4, "kv.weight": (8,) * 4}
    sizes["neighbours.weight"] = (32,) if kind == "decoder" else (32, 32)
    ends = {end for end in sizes if any(name.endswith(f".{end}") or name == end for name in parts)}
    assert ends == set(sizes) - (set() if kind == "encoder_decoder" else {"q.weight", "kv.weight"})
    for name, rows in parts.items():
        end = ".".join(name.split(".")[-2:])
        both = kind == "encoder_decoder" and end == "neighbours.weight"
        assert rows in ([(32,), (32, 32)] if both else [sizes[end]]), name


@pytest.mark.parametrize("kind", KINDS)
def test_forward_is_hidden(make, ids, kind):
    model, tokens = make(kind), ids(2, 5)
    arguments = (tokens, tokens) if kind == "encoder_decoder" else (tokens,)
    assert torch.equal(model(*arguments), model.hidden(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_give_the_same(make, ids, kind):
    model, tokens = make(kind, **RICH), ids(2, 7)
    compiled = make(kind, compile=True, **RICH)
    compiled.load_state_dict(model.state_dict())  # strict: no `_orig_mod.`
    compiled.train()
    out = run(compiled, tokens)
    torch.testing.assert_close(out, run(model, tokens), atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    run(model, tokens).square().sum().backward()
    for (name, one), (_, two) in zip(compiled.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-4, rtol=1e-3, msg=name)
