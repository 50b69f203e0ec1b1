"""A tiny model with every kind of parameter, and a few steps of training."""

import pytest
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"qkv": nn.Linear(8, 24), "up": nn.Linear(8, 32), "down": nn.Linear(32, 8)}) for _ in range(2)
        )
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            q, k, v = block["qkv"](x).chunk(3, -1)
            x = x + block["down"]((block["up"](x + q * k + v)).relu())
        return self.head(x)


@pytest.fixture
def tiny():
    """Makes the same model at every call."""

    def make():
        torch.manual_seed(0)
        return Tiny()

    return make


@pytest.fixture
def train():
    """Steps on one fixed batch -> the losses before each."""

    def run(model, optimizer, steps):
        ids = torch.arange(11)
        losses = []
        for _ in range(steps):
            loss = nn.functional.cross_entropy(model(ids), ids.roll(3))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return run
