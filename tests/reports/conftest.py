"""Run folders to compare: one really trained, and copies of it with other settings, seeds and numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lit_tfm import config
from lit_tfm.train import train

TINY = ["model.d_model=16", "model.n_layers=1", "model.n_heads=1", "trainer.precision=32", "trainer.accelerator=cpu"]
QUICK = ["trainer.max_steps=8", "trainer.val_every=2", "trainer.log_every=1", "data.val_limit=8", "budget=null"]


@pytest.fixture(scope="session")
def trained(text_folder: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run: eight steps of a character model, without its checkpoints."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    given = ["experiment=char_gpt", f"data.path={text_folder}", f"cache_dir={session_cache}", *TINY, *QUICK]
    train(config.compose([*given, f"output_dir={folder}"]), quiet=True)
    shutil.rmtree(folder / "checkpoints")
    return folder


Make = Callable[..., Path]


@pytest.fixture
def make(trained: Path, tmp_path: Path) -> Make:
    """`make("a", {"seed": 2}, {"val/loss": 3.0}, status="stopped")`: a copy of the run under outputs/, changed.

    Metrics are both the last and the best ones; other keywords go into summary.json.
    """

    def copy(name: str, settings: dict | None = None, metrics: dict | None = None, **summary) -> Path:
        folder = tmp_path / "outputs" / name
        shutil.copytree(trained, folder)
        if settings:
            cfg = OmegaConf.load(folder / "config.yaml")
            for key, value in settings.items():
                OmegaConf.update(cfg, key, value, force_add=True)
            (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        known = json.loads((folder / "summary.json").read_text())
        for kind in ("metrics", "best"):
            known[kind] |= metrics or {}
        known |= {"seed": (settings or {}).get("seed", known["seed"]), **summary}
        (folder / "summary.json").write_text(json.dumps(known))
        return folder

    return copy
