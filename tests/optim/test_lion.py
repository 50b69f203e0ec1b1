import torch
from torch import nn

from lit_tfm.optim.lion import lion


def test_equals_algorithm_2_of_the_paper():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3))
    theta, m = weight.detach().clone(), torch.zeros(4, 3)
    optimizer = lion([("weight", weight)], lr=0.1, betas=(0.7, 0.9), weight_decay=0.2)
    for _ in range(10):
        g = torch.randn(4, 3)
        weight.grad = g.clone()
        optimizer.step()
        c = 0.7 * m + 0.3 * g
        theta = theta - 0.1 * (c.sign() + 0.2 * theta)
        m = 0.9 * m + 0.1 * g
    torch.testing.assert_close(weight.detach(), theta)
