"""What a training step would do on a GPU, seen without one: nothing lies on two devices, and the host asks for nothing.

Shapes, dtypes and devices are followed by torch's fake tensors; kernels and figures need a GPU.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import fake_cuda
import pytest
import torch

SIZES = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "data.batch_size=4", "budget=null"]
TEXT = [*SIZES, "data.block_size=32", "tokenizer.vocab_size=300", "data.val_limit=8"]
RECIPES = ("bert_small", "gpt_small", "t5_small")
VARIANTS = (
    ["optimizer=adamw", "data.pack=documents"],
    ["optimizer=lion", "task.label_smoothing=0.1"],
    ["optimizer=adafactor", "model.dropout=0.1"],
    ["model.positions=alibi", "model.n_kv_heads=1"],
    ["model.positions=t5", "trainer.precision=32"],
    ["model.positions=learned", "model.norm=layer", "model.norm_weight=true", "model.bias=true", "model.gated=true"],
    ["model.activation_checkpointing=true"],
    ["model.neighbours=2", "model.value_embeddings=true", "data.document=line"],
)


@pytest.fixture(scope="module")
def fake_gpu(tmp_path_factory, session_cache):
    """cases -> what each came to, of a process of its own that takes the CPU's torch for one that has a GPU."""
    if torch.version.cuda or not shutil.which("g++"):
        pytest.skip("needs torch's build for CPUs, and g++")
    library = tmp_path_factory.mktemp("fake") / "fake_cuda.so"
    fake_cuda.compile_library(library)

    def run(cases: list[dict]) -> list[dict]:
        for case in cases:
            case["words"] = [*case["words"], f"cache_dir={session_cache}", "trainer.accelerator=cpu"]
        command = [sys.executable, "-W", "ignore", Path(fake_cuda.__file__), library]
        done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=False)
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"wrong"')]
        assert len(found) == len(cases), done.stderr
        return found

    return run


def check(cases: list[dict], found: list[dict]) -> None:
    wrong = {" ".join(c["words"]): f["wrong"] for c, f in zip(cases, found, strict=True) if f["wrong"]}
    assert not wrong


def test_language_models(fake_gpu, text_folder) -> None:
    cases = [{"words": [f"experiment={recipe}", f"data.path={text_folder}", *TEXT]} for recipe in RECIPES]
    found = fake_gpu(cases)
    check(cases, found)
    assert {dtype for each in found for dtype in each["products"]} == {"bfloat16"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_their_variants(fake_gpu, text_folder, recipe) -> None:
    base = [f"experiment={recipe}", f"data.path={text_folder}", *TEXT]
    cases = [{"words": [*base, *variant]} for variant in VARIANTS]
    found = fake_gpu(cases)
    check(cases, found)
    for variant, each in zip(VARIANTS, found, strict=True):
        assert set(each["products"]) == {"float32" if "trainer.precision=32" in variant else "bfloat16"}, variant


def test_classifiers(fake_gpu, labelled_csv) -> None:
    words = [*SIZES, "data=csv", f"data.path={labelled_csv}", "data.label=label", "tokenizer.vocab_size=300"]
    cases = [
        {"words": [f"experiment=emotion_{kind}", *words, *more]}
        for kind in ("bert", "gpt", "t5")
        for more in (["task.label_smoothing=0.1"],)
    ]
    check(cases, fake_gpu(cases))


def test_what_would_wait_or_lie_elsewhere_is_seen(fake_gpu, text_folder) -> None:
    base = ["experiment=gpt_small", f"data.path={text_folder}", *TEXT]
    reads, elsewhere = fake_gpu([{"words": base, "break": "read"}, {"words": base, "break": "device"}])
    assert "_local_scalar_dense" in reads["wrong"]
    assert "found at least two devices" in elsewhere["wrong"]
