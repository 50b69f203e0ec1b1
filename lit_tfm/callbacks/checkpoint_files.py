"""Checkpoint files: written whole or not at all, checked before they are trusted, and never the only one.

    last.ckpt          the newest; previous.ckpt the one before it
    best.ckpt          the best validations, best-2.ckpt ...; step-N.ckpt where they were asked for
    *.safetensors      the plain weights of best and last
    (in shards, a .ckpt is a folder: sharded_files.py)

A checkpoint is a zip archive in which torch keeps a CRC-32 of every record; `check` reads all of them.
"""

import json
import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_tfm.callbacks import sharded_files
from lit_tfm.callbacks.replacing import disk_error, is_sharded, open_new, put, remove, sync, sync_folder
from lit_tfm.errors import UserError

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
STEP = "step"  # of the weights, in the header of a .safetensors


class AtomicCheckpointIO(TorchCheckpointIO):
    """To a temporary name, synced, renamed: a crash in the middle leaves the checkpoint before.

    The newest of a run is kept as previous.ckpt until the next: should the disk have spoilt one, there is another.
    With `weights` the plain weights are written beside it.
    """

    weights = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial(path) as temporary:
            try:
                with open_new(temporary) as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException as error:
                raise (disk_error(error) or error) from None
            take_place(temporary, path)
        if self.weights:
            save_weights(path, checkpoint["state_dict"], checkpoint["global_step"])

    def load_checkpoint(self, path, map_location=None, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(path)
        return (
            sharded_files.read(path) if is_sharded(path) else super().load_checkpoint(path, map_location, weights_only)
        )


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """The temporary name of a file or folder; what failed leaves nothing there."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
    except BaseException:
        with suppress(OSError):
            remove(temporary)
        raise


def take_place(temporary: Path, path: Path) -> None:
    """A checkpoint that is whole and synced gets its name. Killed in the middle, `newest` finds the one before."""
    if path.name == LAST and path.exists():
        put(path, path.with_name(PREVIOUS))
    put(temporary, path)
    sync_folder(path.parent)


def save_weights(checkpoint: Path, state: dict[str, Tensor], step: int = 0) -> None:
    """`state_dict` of a checkpoint as safetensors beside it; tied weights stand once, under their first name."""
    seen: set[tuple] = set()
    plain = {}
    for name, tensor in state.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape)
        if place not in seen:
            plain[name] = tensor.detach().cpu().contiguous()
        seen.add(place)
    final = checkpoint.with_suffix(".safetensors")
    with partial(final) as temporary:
        with open_new(temporary) as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
        save_file(plain, temporary, metadata={"format": "pt", STEP: str(step)})
        order_header(temporary)
        os.chmod(temporary, mode)  # save_file lets only the owner read it, whatever the umask
        sync(temporary)
        os.replace(temporary, final)


def order_header(path: Path) -> None:
    """Sort what a file says of itself, which the library writes in any order: equal weights are to be equal files."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def keep_as(path: Path, name: str, weights: bool = True) -> None:
    """A checkpoint and its weights under a further name, without writing them again where the disk has links."""
    for suffix in (path.suffix, ".safetensors") if weights else (path.suffix,):
        kept = path.with_name(name).with_suffix(suffix)
        with partial(kept) as temporary:
            remove(temporary)
            link(path.with_suffix(suffix), temporary)
            put(temporary, kept)


def link(source: Path, target: Path) -> None:
    """The same content under another name; a copy where the disk has no links."""
    if source.is_dir():
        target.mkdir()
        for file in source.iterdir():
            link(file, target / file.name)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def step_of(path: Path) -> int | None:
    """The optimizer step a checkpoint was taken at; None where there is none that can be read."""
    try:
        return int(head(path)[0]["global_step"])
    except Exception:  # bytes from anywhere
        return None


def step_of_weights(path: Path) -> int | None:
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.metadata()[STEP])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return None


def check(path: Path) -> str | None:
    """None where the file is a whole checkpoint of a run, else what is wrong with it. Executes nothing."""
    try:
        if path.is_dir():
            if wrong := sharded_files.check(path):
                return wrong
            saved = sharded_files.rest(path)
        else:
            with zipfile.ZipFile(path) as archive:
                if (broken := archive.testzip()) is not None:
                    return f"the checksum of {broken} is wrong"
            saved = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except pickle.UnpicklingError:
        return "it holds more than plain values; what is in it was not executed"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # bytes from anywhere: whatever a reader stumbles over, the file is broken
        return " ".join(str(error).split())[:120] or type(error).__name__
    return _lacking(saved)


def _lacking(saved: Any) -> str | None:
    if not isinstance(saved, dict):
        return f"it holds a {type(saved).__name__}, no state of a run"
    missing = [key for key in ("state_dict", "global_step", "loops", "lit_tfm") if key not in saved]
    return f"it lacks {', '.join(missing)}" if missing else None


def read(path: Path) -> dict[str, Any]:
    """A checkpoint of either kind, whole, on the CPU. Executes nothing."""
    if is_sharded(path):
        return sharded_files.read(path)
    return torch.load(path, weights_only=True, mmap=True, map_location="cpu")


def head(path: Path) -> tuple[dict[str, Any], dict[str, torch.Size]]:
    """What a checkpoint says without its large tensors being read, and the shapes of its weights by name."""
    if is_sharded(path):
        return sharded_files.rest(path), sharded_files.sizes(path)
    saved = read(path)
    return saved, {name: value.shape for name, value in saved["state_dict"].items()}


def newest(folder: Path, asked: str = "auto") -> tuple[Path, list[str]]:
    """The newest whole checkpoint of a run's `checkpoints/`, and a sentence on each newer one that is broken.

    Raises UserError where there is none; `asked` is what was typed as `resume=`.
    """
    notices: list[str] = []
    for path in _by_age(folder):
        if (wrong := check(path)) is None:
            return path, notices
        notices.append(f"{path} is broken ({wrong})")
    if notices:
        raise UserError(f"resume={asked}: {'; '.join(notices)}; none is whole: train anew, with another output_dir")
    raise UserError(
        f"resume={asked}: there is no checkpoint in {folder}; name a run folder or a .ckpt file, or resume=auto"
    )


def _by_age(folder: Path) -> list[Path]:
    """All checkpoints, the newest first: by step, last.ckpt and previous.ckpt before others of theirs.

    step-N.ckpt may be of a future that was given up by going on from an older one. Then it was saved before one of an
    earlier step, and comes at the end. The time alone does not tell the order: a copied folder has that of the copy.
    """
    saved = {path: path.stat().st_mtime for path in folder.glob("[!.]*.ckpt")}
    kept = [path for path in (folder / LAST, folder / PREVIOUS) if path in saved]
    oldest = min((saved[path] for path in kept), default=0.0)
    steps = {path: step_of(path) for path in saved if path in kept or saved[path] > oldest}
    # What can't be read counts as the newest: that it is broken is to be told.
    order = {path: math.inf if step is None else step for path, step in steps.items()}
    for path in kept[1:]:  # previous.ckpt: of a later step only where a kill came before it was removed
        order[path] = min(order[path], order[kept[0]])
    given_up = {path for path in order for each in kept if order[each] < order[path] and saved[path] < saved[each]}
    mine = [path for path in order if path in kept or path not in given_up]
    mine.sort(key=lambda path: (-order[path], path not in kept, path.name != LAST))
    rest = sorted(saved.keys() - set(mine), key=saved.__getitem__, reverse=True)
    return [*mine, *rest]
