"""The notebooks run from top to bottom, on runs that are made here; in git they hold no outputs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from lit_tfm import config
from lit_tfm.build import build
from lit_tfm.hardware import choose
from lit_tfm.search.settings import load
from lit_tfm.search.supervisor import run_sweep
from lit_tfm.train import train

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TINY = ["trainer.precision=32", "trainer.accelerator=cpu", "model.d_model=16", "model.n_layers=2", "model.n_heads=2"]
SHORT = ["trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1", "data.val_limit=8", "budget=null"]
BLOCKS = ["data.block_size=32", "data.batch_size=4"]

# What the first code cell of each is followed by here: the same names, small values.
SMALL = {
    "quickstart": f"RUN += {[*TINY, *SHORT, *BLOCKS]}",
    "compare_runs": "",
    "read_a_sweep": "",
    "look_at_attention": "RUN, TOKENS = 'outputs/bert_small', 12",
    "scaling_law": f"""
RUN += {["trainer.precision=32", "trainer.accelerator=cpu", "trainer.val_every=0.5", *BLOCKS]}
SIZES = [(16, 1, 2e7), (16, 2, 4e7), (32, 1, 8e7), (32, 2, 1.6e8), (48, 1, 3.2e8)]""",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory, session_cache, text_folder) -> Path:
    """A folder with outputs/: two masked LMs, a span corruption model, and a sweep of three trials."""
    folder = tmp_path_factory.mktemp("notebooks")
    text = [f"data.path={text_folder}", f"cache_dir={session_cache}", *BLOCKS, "tokenizer.vocab_size=300"]
    runs = {"bert_small/1": ["experiment=bert_small"], "bert_small/2": ["experiment=bert_small", "optimizer.lr=0.003"]}
    runs["t5_small/1"] = ["experiment=t5_small"]
    for name, options in runs.items():
        given = [*options, *TINY, *SHORT, *text, f"output_dir={folder / 'outputs' / name}"]
        train(config.compose(given), quiet=True)
    sweep = ["sweep=pydoc_quick", "n_trials=3", "workers=1", "budget=null", "trainer.max_steps=4", *text]
    place = folder / "outputs" / "sweeps" / "pydoc_quick"
    assert run_sweep(load([*sweep, f"output_dir={place}"]), quiet=True, pages=False).status == "done"
    return folder


@pytest.fixture(scope="module")
def kernel(work: Path, session_cache: Path) -> Iterator[KernelManager]:
    """One kernel for all, emptied in between: importing torch five times takes longer than all that is done here."""
    manager = KernelManager()
    manager.start_kernel(cwd=str(work), env={**os.environ, "LIT_TFM_CACHE": str(session_cache), "OMP_NUM_THREADS": "1"})
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.fixture
def run(kernel: KernelManager) -> Callable[[str], NotebookNode]:
    """Executes a notebook with small values; fails at the first cell that raises."""

    def execute(name: str) -> NotebookNode:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        first = next(place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code")
        notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(SMALL[name]))
        notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
        return NotebookClient(notebook, timeout=120, km=kernel).execute()

    return execute


def texts(notebook: NotebookNode) -> str:
    """All that was printed or shown as text."""
    shown = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            shown += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
    return "\n".join(shown)


def kinds(notebook: NotebookNode) -> list[str]:
    """The kinds of what was shown: image/png, application/vnd.plotly.v1+json ..."""
    return [kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_in_git_was_never_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
        assert not cell.metadata
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")


@pytest.mark.parametrize("name", ["quickstart", "scaling_law"])
def test_runs_as_they_stand_there_can_be_built(name: str, session_cache: Path) -> None:
    """The small values of this test hide no mistake in those of the notebook."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    given: dict = {}
    exec(next(cell.source for cell in notebook.cells if cell.cell_type == "code"), given)
    cfg = config.compose([*given["RUN"], "budget=1e9 flops", f"cache_dir={session_cache}"])
    assert build(cfg, choose(cfg.trainer)).task.progress.asked is not None


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS} == SMALL.keys()


def test_quickstart(run, work: Path) -> None:
    done = run("quickstart")
    assert "'val/loss'" in texts(done)
    assert kinds(done).count("application/vnd.plotly.v1+json") == 2
    assert texts(done).count("Return the ") == 2
    assert len(list((work / "outputs" / "pydoc_gpt").iterdir())) == 1


def test_compare_runs(run, work: Path) -> None:
    done = run("compare_runs")
    assert "bert_small/2" in texts(done)
    assert kinds(done).count("application/vnd.plotly.v1+json") == 2
    assert (work / "report.html").stat().st_size > 1e6


def test_read_a_sweep(run) -> None:
    done = run("read_a_sweep")
    assert "3 of 3 done" in texts(done)
    assert "application/vnd.plotly.v1+json" in kinds(done)
    assert "optimizer:" in texts(done)  # best.yaml


def test_look_at_attention(run) -> None:
    done = run("look_at_attention")
    assert "encoder: (2, 2, 13, 13)" in texts(done)  # layers, heads, a separator and 12 tokens
    assert kinds(done).count("image/png") == 1


def test_scaling_law(run, work: Path) -> None:
    done = run("scaling_law")
    assert "L = " in texts(done)
    assert "intervals: b = " in texts(done)
    assert "image/png" in kinds(done)
    assert len(list((work / "outputs" / "scaling").iterdir())) == 5
