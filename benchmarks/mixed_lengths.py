"""Examples a second on texts of mixed length: batches of similar length against padding to the longest of a random one.

    python benchmarks/mixed_lengths.py --sets emotion=../shared/data/emotion sst2=../shared/data/sst2

Both sides train the same small BERT classifier on the same tokens, with as many examples in every batch; Hugging Face's
Trainer pads as run_glue does without --pad_to_max_length. Both go through their whole trainers, in turns.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import peers_huggingface as huggingface
from measure import Ratio, alternate, circumstances, publish, table
from throughput import Clock, PeerClock

from lit_tfm import config
from lit_tfm.build import build_data
from lit_tfm.data.module import TextData
from lit_tfm.data.sampling import Key
from lit_tfm.train import train

GOAL = 1.5
SKIP = 5  # steps


def words(name: str, path: str, options: argparse.Namespace) -> list[str]:
    """The command line of our run; BERT's layers as published, dropout too."""
    model = ["model=bert_base_2018", f"model.d_model={options.d_model}", f"model.n_layers={options.layers}"]
    model += ["model.n_heads=2", "model.n_segments=0"]
    task = ["task=classification", "task.pooling=first", "task.head_dropout=0.1", "tokenizer=wordpiece"]
    data = [f"data={name}", f"data.path={path}", f"data.batch_size={options.batch}", "data.batch_tokens=null"]
    pace = [f"trainer.max_steps={SKIP + options.steps}", "trainer.val_every=1000000", "budget=null", "test=false"]
    pace += [
        "data.val_limit=1",
        "optimizer=adamw",
        "schedule=linear",
        "trainer.accelerator=cpu",
        "trainer.precision=32",
    ]
    return [*data, *model, *task, *pace, *options.words]


def ours(name: str, path: str, options: argparse.Namespace) -> Callable[[], float]:
    def run() -> float:
        clock = Clock(SKIP)
        with tempfile.TemporaryDirectory() as folder:
            cfg = config.compose([*words(name, path, options), f"output_dir={folder}/run"])
            train(cfg, quiet=True, callbacks=[clock])
        return clock.step

    return run


def examples(data: TextData, count: int) -> list[dict]:
    """The first training examples as run_glue's preparation leaves them: [CLS] text [SEP], and a label."""
    tokenizer, dataset = data.facts.tokenizer, data.dataset("train")
    rows = dataset.__getitems__([Key(0, i) for i in range(min(count, len(dataset)))])
    ends = (tokenizer.cls_id, tokenizer.sep_id)
    return [
        {"input_ids": [ends[0], *row["tokens"].tolist(), ends[1]], "label": int(row["label"])}
        | {"attention_mask": [1] * (len(row["tokens"]) + 2)}
        for row in rows
    ]


def peer(name: str, path: str, options: argparse.Namespace) -> Callable[[], float]:
    data = build_data(config.compose(words(name, path, options)))
    rows = huggingface.datasets.Dataset.from_list(examples(data, (SKIP + options.steps) * options.batch))
    vocab, labels = data.facts.tokenizer.vocab_size, len(data.facts.labels)
    shape = huggingface.bert(vocab, options.d_model, options.layers, 2, num_labels=labels)

    def run() -> float:
        clock = PeerClock(SKIP)
        with tempfile.TemporaryDirectory() as folder:
            data.facts.tokenizer.save(file := Path(folder) / "tokenizer.json")
            arguments = huggingface.TrainingArguments(
                folder, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, logging_steps=500,
                max_steps=SKIP + options.steps, per_device_train_batch_size=options.batch,
            )  # fmt: skip
            collator = huggingface.padding(huggingface.tokenizer(file))
            model = huggingface.classifier(shape, 0)
            huggingface.Trainer(model, arguments, data_collator=collator, train_dataset=rows, callbacks=[clock]).train()
        return clock.step

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", nargs="+", metavar="NAME=PATH", required=True, help="emotion=PATH sst2=PATH")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="of a turn: long and short batches alike")
    parser.add_argument("--batch", type=int, default=64, help="examples")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="three turns of forty steps")
    parser.add_argument("--dry", action="store_true", help="print the table only")
    parser.add_argument("words", nargs="*", help="as on the command line of train")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = min(options.rounds, 3), min(options.steps, 40)
    rows = []
    for name, path in (chosen.split("=", 1) for chosen in options.sets):
        turns = {"ours": ours(name, path, options), "peer": peer(name, path, options)}
        seconds = alternate(turns, options.rounds)
        rates = [f"{options.batch / statistics.median(seconds[side]):,.0f}" for side in ("ours", "peer")]
        ratio = Ratio.of([1 / s for s in seconds["ours"]], [1 / s for s in seconds["peer"]])
        rows.append([name, *rates, ratio, GOAL])
    line = f"{options.rounds} turns of {options.steps} steps of {options.batch} examples, {options.layers} layers of "
    lines = [circumstances("lightning", "transformers"), f"{line}{options.d_model}."]
    lines.append(table(["texts", "examples/s, ours", "Trainer", "ours / theirs", "goal"], rows))
    publish("mixed_lengths", "\n\n".join(lines), options.dry)


if __name__ == "__main__":
    main()
