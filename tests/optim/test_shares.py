"""Ranks that deal matrices out: every one is done once, the results are everywhere, and the work is even."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_tfm.optim.shares import by_shares, deal

SCRIPT = Path(__file__).with_name("sharing.py")


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=40), st.integers(1, 9))
def test_no_rank_has_more_than_its_share_and_one_matrix(costs, ranks):
    hands = deal(tuple(costs), ranks)
    assert sorted(chain(*hands)) == list(range(len(costs)))
    assert len(hands) == ranks
    assert max(sum(costs[index] for index in hand) for hand in hands) <= sum(costs) / ranks + max(costs)


def test_like_matrices_are_spread_evenly():
    assert [len(hand) for hand in deal((7,) * 8, 4)] == [2, 2, 2, 2]


def test_alone_it_is_the_work_itself():
    def work(indices, matrices):
        return [index + 2 * x for index, x in zip(indices, matrices, strict=True)]

    given = [torch.randn(3, 2), torch.randn(2, 5)]
    torch.testing.assert_close(by_shares(given, [1, 1], work, None), [2 * given[0], 1 + 2 * given[1]])


@pytest.mark.parametrize("ranks", [2, 3, pytest.param(9, marks=pytest.mark.slow)])
def test_ranks_share_copies_and_shards(tmp_path, ranks):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), str(ranks), str(tmp_path)], env=environment, **pipes)
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:  # when one fails, the others wait for it
            process.kill()
    for process, (_, errors) in zip(started, said, strict=True):
        assert process.returncode == 0, errors
    copies, shards, of_machines, refused = zip(*(json.loads(out) for out, _ in said), strict=True)
    assert sorted(chain(*copies)) == sorted(chain(*shards)) == list(range(7))
    assert copies == shards
    assert all(refused)
    size = 3 if ranks == 9 else 1  # ranks of a machine
    for first in range(0, ranks, size):
        assert sorted(chain(*of_machines[first : first + size])) == list(range(7))
    assert max(map(len, copies)) < 7
