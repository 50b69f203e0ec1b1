import pytest
import torch

from lit_tfm.optim.adamw import adamw


@pytest.mark.parametrize("fused", [True, False])
def test_equals_torch_adamw_with_decay_on_all_but_vectors(tiny, train, fused):
    ours, theirs = tiny(), tiny()
    optimizer = adamw(ours.named_parameters(), lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3, fused=fused)
    assert all(group["fused"] == fused for group in optimizer.param_groups)
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.3},
            {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.8, 0.9),
        eps=1e-6,
        foreach=False,
    )
    train(ours, optimizer, 20)
    train(theirs, reference, 20)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
