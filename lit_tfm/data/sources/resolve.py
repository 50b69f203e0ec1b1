"""Which source a run gets: files if they are given, else the hub's data set, else, with a notice, the built-in text."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_tfm.data.sources.files import Files
from lit_tfm.data.sources.hub import Hub, HubUnreachable
from lit_tfm.data.sources.pydoc import PydocModules, PydocText
from lit_tfm.data.sources.source import Source
from lit_tfm.errors import UserError, nearest

log = logging.getLogger(__name__)

BUILT_IN = {"pydoc": PydocText, "pydoc_modules": PydocModules}


def resolve(
    path: str | Sequence[str] | Mapping[str, str] | None = None,
    files: Mapping[str, Any] | None = None,
    hub: Mapping[str, Any] | None = None,
    fallback: str | Source | None = None,
    cache_dir: str | Path = "~/.cache/lit_tfm",
) -> Source:
    """`Files(path, **files)` if there is a path; else `Hub(**hub)`, from its cache or over the network; else `fallback`
    (pydoc, pydoc_modules, or a source), whose `notice` then says what was done. Without a hub data set the fallback
    is what was asked for and carries no notice. Raises UserError where nothing is left.
    """
    if path is not None:
        return Files(path, **(files or {}))
    built_in = _built_in(fallback, cache_dir)
    if hub is None:
        if built_in is None:
            raise UserError("data.path is not given; type data.path=FILE, FOLDER or GLOB, or data=pydoc")
        return built_in
    source = Hub(**hub)
    try:
        return source.load()
    except HubUnreachable as error:
        if built_in is None:
            raise
        why = str(error).split(";")[0]
        built_in.notice = f"NOT {source.name} BUT {built_in.name} IS USED: {why}. For files of your own: data.path=PATH"
        log.warning(built_in.notice)
        return built_in


def _built_in(fallback: str | Source | None, cache_dir: str | Path) -> Source | None:
    if fallback is None or isinstance(fallback, Source):
        return fallback
    if fallback not in BUILT_IN:
        known = ", ".join(BUILT_IN)
        raise UserError(f"data.fallback={fallback}: one of {known} or null{nearest(fallback, BUILT_IN)}")
    return BUILT_IN[fallback](cache_dir=cache_dir)
