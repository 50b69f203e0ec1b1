"""One rank of a trial that is pruned at its second rung: `pruned_run.py OUT OVERRIDE...`, under torchrun.

Writes what was reported and where each rank stood at the end. Driven by test_trial.py.
"""

import json
import os
import sys
from pathlib import Path

from lightning import Callback

from lit_tfm import config
from lit_tfm.callbacks.trial import TrialReport
from lit_tfm.train import train


class LastStep(Callback):
    def on_train_end(self, trainer, pl_module):
        self.step = trainer.global_step


def main(out: Path, *overrides: str) -> None:
    reports, last = [], LastStep()

    def report(step: int, value: float) -> bool:
        reports.append([step, value])
        return len(reports) == 2

    rank = int(os.environ["RANK"])
    trial = TrialReport(report if rank == 0 else None, "val/loss", [0.2, 0.4, 0.8])
    result = train(config.compose(overrides), quiet=True, callbacks=[trial, last])
    record = {"reports": reports, "step": last.step, "status": result.status}
    (out / f"rank-{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
