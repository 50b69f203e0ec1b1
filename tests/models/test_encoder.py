import torch


def test_segments_add_their_row_and_default_to_the_first(make, ids):
    model, tokens = make("encoder", n_segments=2), ids(2, 6)
    zeros = torch.zeros_like(tokens)
    assert torch.equal(model.hidden(tokens), model.hidden(tokens, segment_ids=zeros))
    two = zeros.clone()
    two[:, 3:] = 1
    assert not torch.equal(model.hidden(tokens), model.hidden(tokens, segment_ids=two))


def test_scaled_embeddings(make, ids):
    tokens = ids(2, 6)
    plain = make("encoder", embedding_norm=False, positions="sinusoidal")
    scaled = make("encoder", embedding_norm=False, positions="sinusoidal", scale_embeddings=True)
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        plain.embedding.weight *= 24**0.5
    torch.testing.assert_close(scaled.hidden(tokens), plain.hidden(tokens))


def test_hidden_states_are_normed(make, ids):
    for norm_position in ("pre", "post", "rezero"):
        model = make("encoder", norm_position=norm_position)
        size = model.hidden(ids(2, 6)).square().mean(-1).sqrt()
        torch.testing.assert_close(size, torch.ones(2, 6), atol=1e-4, rtol=1e-4)
