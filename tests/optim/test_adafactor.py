import torch
from torch import nn

from lit_tfm.optim.adafactor import adafactor


def test_equals_torch_adafactor():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(5, 7), (2, 3, 4), (9,), ()]]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = adafactor([(str(i), p) for i, p in enumerate(ours)], lr=0.1, weight_decay=0.1)
    reference = torch.optim.Adafactor(
        [{"params": theirs[:2], "weight_decay": 0.1}, {"params": theirs[2:], "weight_decay": 0.0}], lr=0.1
    )
    for step in range(150):  # past 1/sqrt(step) < lr
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a) * 10.0 ** (step % 3 - 1)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_state_is_a_row_and_a_column():
    weight = nn.Parameter(torch.randn(30, 20))
    optimizer = adafactor([("weight", weight)])
    weight.grad = torch.randn(30, 20)
    optimizer.step()
    assert sum(value.numel() for value in optimizer.state[weight].values() if torch.is_tensor(value)) == 50
