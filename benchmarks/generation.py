"""What the key-value cache is worth: 256 new tokens from a 4-layer decoder, with it and without, in one run.

    OMP_NUM_THREADS=1 python benchmarks/generation.py

Both ways take turns on the same prompt, so that a busy machine slows both; the figure is the ratio of the medians, by
the clock and by the processor's time, which leaves out what other programs took. d_model 512 is the default model.
Without the cache each token reads all tokens before it, and the head is computed for the last one only.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from lit_tfm.data.facts import DataFacts
from lit_tfm.data.tokenizers import Byte
from lit_tfm.generation.decode import decode
from lit_tfm.models.decoder import Decoder
from lit_tfm.optim.adamw import adamw
from lit_tfm.optim.schedules import constant
from lit_tfm.tasks.causal_lm import CausalLM


class Anew:
    """A reader without a cache."""

    def __init__(self, task: CausalLM) -> None:
        self.task, self.tokens = task, None

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.tokens = tokens if self.tokens is None else torch.cat([self.tokens, tokens], dim=1)
        return self.task.head(self.task.model.hidden(self.tokens)[:, -1])


def build(d_model: int, vocabulary: int, positions: str) -> CausalLM:
    torch.manual_seed(0)
    model = Decoder(
        vocab_size=vocabulary, d_model=d_model, n_layers=4, n_heads=8, max_length=512, positions=positions,
        zero_init=False,
    )  # fmt: skip
    facts = DataFacts(tokenizer=Byte().train(()), splits={})
    return CausalLM(model=model, facts=facts, optimizer=partial(adamw), schedule=constant).eval()


def timed(reader: Callable, prompt: torch.Tensor, new: int) -> tuple[tuple[float, float], torch.Tensor]:
    """((seconds of the clock, of the processor), tokens)."""
    began = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        tokens = decode(reader(), prompt, new)
    return (time.perf_counter() - began[0], time.process_time() - began[1]), tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--d-model", type=int, nargs="+", default=[512, 256])
    parser.add_argument("--positions", default="rotary")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {platform.machine()}; {options.rounds} rounds")
    for d_model in options.d_model:
        task = build(d_model, 8192, options.positions)
        prompt = torch.randint(8192, (1, options.prompt), generator=torch.Generator().manual_seed(0))
        ways = {"cached": task.reader, "uncached": partial(Anew, task)}
        for reader in ways.values():
            timed(reader, prompt, 8)  # the first calls of a process are slow
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        said = {}
        for _ in range(options.rounds):
            for way, reader in ways.items():
                took, said[way] = timed(reader, prompt, options.new)
                seconds[way].append(took)
        same = "the same text" if torch.equal(said["cached"], said["uncached"]) else "OTHER TEXT"
        print(f"d_model {d_model}, {options.new} new tokens, {same}")
        for kind, clock in enumerate(("clock", "processor")):
            cached, uncached = (statistics.median(took[kind] for took in seconds[way]) for way in ways)
            rates = f"cached {options.new / cached:.0f} tokens/s, uncached {options.new / uncached:.0f} tokens/s"
            print(f"  by the {clock:9} {rates}: {uncached / cached:.1f} times", flush=True)


if __name__ == "__main__":
    main()
