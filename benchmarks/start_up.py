"""From the start of a process to its first optimizer step with warm caches, against a Hugging Face Trainer script; and
how long `--help` takes.

    OMP_NUM_THREADS=2 python benchmarks/start_up.py --path FOLDER

FOLDER holds WikiText-2 (train, valid and test files). Both sides are what a person types: `python -m lit_tfm.train`
with its defaults (TensorBoard, checkpoints, all callbacks), and a script with the calls of run_mlm around `Trainer`,
with its data sets cached and no reports. Same shape (masked LM, 4 layers, d 128, vocabulary 8192), batches of 16 blocks
of 128 tokens. A callback of either side tells the time after the first optimizer step and ends the process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import data_preparation
import measure

NAME, HELP_GOAL, GOAL = "start_up", 1.0, 0.7
LAYERS, WIDTH, HEADS, BATCH = 4, 128, 4, 16
STOPPER = """
import os, time
from lightning import Callback

class FirstStep(Callback):
    def on_train_batch_end(self, *_):
        print("first step at", time.time(), flush=True)
        os._exit(0)
"""


def huggingface(path: Path, tokenizer: Path, cache: Path) -> None:
    """run_mlm in short: cached preparation, model, Trainer, one step."""
    from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling, Trainer, TrainerCallback
    from transformers import TrainingArguments as Arguments

    class FirstStep(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            print("first step at", time.time(), flush=True)
            os._exit(0)

    blocks, fast = data_preparation.run_mlm_blocks(path, tokenizer, cache)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    model = BertForMaskedLM(BertConfig(vocab_size=len(fast), intermediate_size=4 * WIDTH, **shape))
    arguments = Arguments(
        str(cache / "run"), per_device_train_batch_size=BATCH, max_steps=1, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(fast, mlm_probability=0.15)
    Trainer(model, arguments, collator, train_dataset=blocks["train"], callbacks=[FirstStep()]).train()


class Starts:
    """Processes of either side, each timed from outside."""

    def __init__(self, path: Path, tokenizer: Path, folder: Path) -> None:
        self.path, self.tokenizer, self.folder = path, tokenizer, folder
        (folder / "start_up_stopper.py").write_text(STOPPER)

    def ours(self) -> float:
        words = [
            "experiment=bert_small",
            f"model.d_model={WIDTH}",
            f"model.n_layers={LAYERS}",
            f"model.n_heads={HEADS}",
        ]
        words += [f"data.path={self.path}", f"data.batch_size={BATCH}", "data.block_size=128", "trainer=cpu"]
        words += [f"tokenizer.path={self.tokenizer}", f"cache_dir={self.folder / 'ours'}"]
        words += ["callbacks.stop={_target_: start_up_stopper.FirstStep}", "allow_targets=start_up_stopper"]
        words += [f"output_dir={self.folder / 'runs' / str(time.time_ns())}"]
        return self._until_first_step([sys.executable, "-m", "lit_tfm.train", *words])

    def peer(self) -> float:
        words = ["--huggingface", "--path", str(self.path), "--tokenizer", str(self.tokenizer)]
        return self._until_first_step([sys.executable, __file__, *words, "--cache", str(self.folder / "theirs")])

    def _until_first_step(self, command: list[str]) -> float:
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "HF_HOME": str(self.folder), "HF_HUB_OFFLINE": "1"}
        began = time.time()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        _, found, told = done.stdout.partition("first step at ")
        if not found:
            raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-3000:]}")
        return float(told.split()[0]) - began

    def help(self) -> float:
        began = time.time()
        subprocess.run([sys.executable, "-m", "lit_tfm.train", "--help"], capture_output=True, check=True)
        return time.time() - began


def section(figures: dict[str, list[float]]) -> str:
    def shown(name: str) -> str:
        return f"{statistics.median(figures[name]):.2f} s ({min(figures[name]):.2f} to {max(figures[name]):.2f})"

    ratio = measure.Ratio.of(figures["ours"], figures["peer"])
    rows = [
        ["process start to first step", shown("peer"), shown("ours"), str(ratio), f"{GOAL}"],
        ["`--help`", "", shown("help"), "", f"{HELP_GOAL:.0f} s"],
    ]
    head = ["warm caches", "Hugging Face Trainer", "ours", "ours / theirs (spread)", "goal"]
    return f"{measure.circumstances('lightning', 'transformers')}\n\n{measure.table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="folder with WikiText-2's train, valid, test files")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--dry", action="store_true", help="print only, leave RESULTS.md alone")
    parser.add_argument("--huggingface", action="store_true", help=argparse.SUPPRESS)  # the peer's process
    parser.add_argument("--tokenizer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.huggingface:
        return huggingface(args.path, args.tokenizer, args.cache)
    with tempfile.TemporaryDirectory() as folder:
        path = args.path.resolve()
        starts = Starts(path, data_preparation.trained_tokenizer(path, Path(folder)), Path(folder))
        contestants = {"ours": starts.ours, "peer": starts.peer, "help": starts.help}
        for start in contestants.values():  # fills the caches
            start()
        figures = measure.alternate(contestants, 3 if args.quick else args.rounds)
    measure.publish(NAME, section(figures), args.dry)
    return None


if __name__ == "__main__":
    main()
