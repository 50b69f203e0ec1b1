"""The run that is evaluated or used: its config, what it has learnt, and the device it computes on here."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lit_tfm import trained
from lit_tfm.config import check_keys, check_values, loosen, resolve
from lit_tfm.errors import UserError, nearest
from lit_tfm.hardware import Hardware, choose
from lit_tfm.runs import RunFolder
from lit_tfm.tasks.base import Task

OPEN = ("data", "trainer", "seed", "cache_dir")  # what may differ from training and leave the model what it is


@dataclass
class Subject:
    """A run opened for use. `notes` are lines a person should see beside any result."""

    run: RunFolder
    cfg: DictConfig  # as trained, with the overrides
    task: Task  # in eval mode, on the device
    weights: Path
    hardware: Hardware
    words: tuple[str, ...] = ()  # the overrides as they were typed
    typed: dict[str, Any] = field(default_factory=dict)  # and by key
    notes: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.hardware.accelerator == "gpu" else "cpu")

    def autocast(self) -> AbstractContextManager:
        """The precision the run computes in."""
        mixed = self.hardware.precision == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext()

    def moved(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch on the device."""
        return {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def open_subject(folder: str | Path, checkpoint: str | None = None, overrides: tuple[str, ...] = ()) -> Subject:
    """Raises UserError for a folder that is no run, weights that are not there or do not fit, or a wrong override."""
    run = RunFolder.open(folder)
    cfg = trained.config_of(run)
    typed = parse(overrides)
    task, weights = trained.load(run, checkpoint)
    for key, value in typed.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    resolve(cfg)
    check_keys(cfg)
    check_values(cfg)
    hardware, notes = hardware_for(cfg, typed)
    subject = Subject(run, cfg, task, weights, hardware, overrides, typed, [*unfinished(run), *notes])
    task.to(subject.device)
    if hardware.precision == "bf16-true":
        task.to(torch.bfloat16)
    return subject


def parse(overrides: tuple[str, ...]) -> dict[str, Any]:
    """`data.val_limit=8` -> {"data.val_limit": 8}. Raises UserError for a key that would make it another run."""
    typed = {}
    for given, text in zip(overrides, loosen(overrides), strict=True):
        if given.startswith("-"):
            raise UserError(f"{given}: no such option; --help lists them")
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise UserError(f"{given!r} is no override; type key=value, e.g. data.path=FILE") from error
        group, _, rest = override.key_or_group.partition(".")
        if group not in OPEN or (group == "data" and not rest):
            hint = "type --data NAME" if group == "data" else f"what may be given is {', '.join(OPEN)}"
            raise UserError(f"{given}: that is settled by the run{nearest(group, OPEN)}; {hint}")
        typed[override.key_or_group] = override.value()
    return typed


def hardware_for(cfg: DictConfig, typed: dict[str, Any]) -> tuple[Hardware, list[str]]:
    """One device of this machine, in the run's precision where it can be had; and what is different from training."""
    trainer = OmegaConf.create(OmegaConf.to_container(cfg.trainer))
    trainer.update(devices=1, num_nodes=1, strategy="auto")
    asked = {key.removeprefix("trainer.") for key in typed}
    if "accelerator" not in asked and not torch.cuda.is_available():
        trainer.accelerator = "cpu"
    if "precision" in asked:
        return choose(trainer), []
    try:
        return choose(trainer), []
    except UserError:
        wanted, trainer.precision = trainer.precision, "auto"
        hardware = choose(trainer)
        return hardware, [f"trained with trainer.precision={wanted}, computed here in {hardware.precision}"]


def unfinished(run: RunFolder) -> list[str]:
    """A line where the run has not come to its end."""
    try:
        summary = run.read_json("summary.json")
    except (OSError, ValueError, UserError):
        return ["the run has no summary.json that can be read: how far it was trained is not known"]
    status = summary.get("status")
    if status == "finished":
        return []
    reason = f": {summary['reason']}" if summary.get("reason") else ""
    return [f"the run is not finished: {status} after {summary.get('steps', '?')} steps{reason}"]
