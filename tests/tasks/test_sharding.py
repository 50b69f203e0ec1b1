"""The sums that each rank gets of its part, among real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lit_tfm.tasks.sharding import ReduceScatterByExchange

SCRIPT = Path(__file__).with_name("exchanging.py")


@pytest.mark.parametrize("ranks", [1, 3])
def test_each_rank_gets_the_sum_of_its_part(tmp_path, ranks):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(ranks), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            out, complaint = process.communicate(timeout=120)
            assert (process.returncode, out) == (0, "equal\n"), complaint[-3000:]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize(("op", "later"), [(dist.ReduceOp.MAX, False), (dist.ReduceOp.SUM, True)])
def test_what_it_does_not_do_it_refuses(op, later):
    with pytest.raises(NotImplementedError, match="reduce-scatter by"):
        ReduceScatterByExchange()(torch.empty(1), torch.empty(2), None, op, async_op=later)
