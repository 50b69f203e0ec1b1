"""What a training run imports until its first step: nothing heavy that only others need. Names count, not seconds."""

import os
import subprocess
import sys

# Half a second each, more on a slow disk; some are only there because an extra is installed.
LATE = ["torchmetrics.functional", "transformers", "scipy", "datasets", "pyarrow", "optuna", "pandas", "plotly"]
LATE += ["matplotlib"]
LATE += ["sklearn", "IPython", "torchvision", "huggingface_hub", "torch._inductor.compile_fx", "tensorflow"]
STOP = """
import os, sys
from lightning import Callback

class Stop(Callback):
    def on_train_batch_end(self, *_):
        print("\\n".join(["modules", *sys.modules]), flush=True)
        os._exit(0)
"""


def test_a_run_imports_little_until_its_first_step(tmp_path, session_cache) -> None:
    (tmp_path / "stop_at_once.py").write_text(STOP)
    words = ["experiment=bert_small", "data=pydoc", "tokenizer=byte", "model=bert_tiny", "model.n_layers=1"]
    words += ["data.batch_size=2", "data.block_size=16", "trainer.max_steps=1", f"cache_dir={session_cache}"]
    words += [
        "callbacks.stop={_target_: stop_at_once.Stop}",
        "allow_targets=stop_at_once",
        f"output_dir={tmp_path}/run",
    ]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "lit_tfm.train", *words],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    before, found, names = done.stdout.partition("modules\n")
    assert found, done.stderr + before
    modules = set(names.split())
    assert "lit_tfm.tasks.masked_lm" in modules  # it was a real run
    assert not modules.intersection(LATE)
