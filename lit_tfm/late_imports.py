"""A quicker start of the command line: torchmetrics' package body is run when something first asks for it.

Lightning wants two classes of torchmetrics, `Metric` and `MetricCollection`; importing the package for them runs a body
that brings in all its metrics, and through these scipy.signal and, where it is installed, transformers: 1.6 of the 5
seconds a training run spent on imports. torchmetrics and Lightning offer no switch, so `quicken()` puts a finder before
Python's own that gives torchmetrics as a module whose body has not run yet:

- `Metric`, `MetricCollection` and what `__about__` holds (`__version__`) come from their own files;
- any other name, and the import of any other submodule, first runs the body, once, in that same module.

Where a version of torchmetrics does not let its files be imported before its body, the body is run at once. So whoever
uses torchmetrics finds all of it, the same objects in the same places, only later. Only processes that are
a command of lit_tfm are quickened (`python -m lit_tfm.train`), never one that merely imports the package: a notebook
or a program of yours imports torchmetrics as ever.
"""

import importlib
import logging
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

PACKAGE = "torchmetrics"
EARLY_NAMES = {"Metric": "metric", "MetricCollection": "collections", "__version__": "__about__"}
LOGGER = "_logger"  # the body gives it a handler; until then it is the plain one of that name
EARLY_FILES = {"metric", "collections", "utilities", "__about__"}  # these need nothing of the rest


def quicken() -> None:
    """From now on, torchmetrics is imported late. Without effect where it has been imported already."""
    if PACKAGE not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _LatePackage(ModuleType):
    """The package before its body has run; afterwards it is a plain module."""

    def __getattr__(self, name: str) -> object:
        if name == LOGGER:
            return logging.getLogger(PACKAGE)
        if name in EARLY_NAMES and (file := _early(EARLY_NAMES[name])):
            return getattr(file, name)
        if name.startswith("__") and name != "__all__":  # Python looking at the module, nobody using it
            raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
        run_body(self)
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        run_body(self)
        return dir(self)


def _early(file: str) -> ModuleType | None:
    """A file of the package without its body, None where it can't do without."""
    try:
        if file != "__about__":
            importlib.import_module(f"{PACKAGE}.utilities")  # imports metric itself, and can't be imported by it
        return importlib.import_module(f"{PACKAGE}.{file}")
    except ImportError:
        return None


_body = threading.RLock()


def run_body(package: ModuleType) -> None:
    """Run the body if it has not run; what it imports of the package itself finds the module as it always does."""
    with _body:
        if type(package) is not _LatePackage:
            return
        package.__class__ = ModuleType
        try:
            package.__spec__.loader.inner.exec_module(package)
        except BaseException:
            package.__class__ = _LatePackage  # the next use tries again, and fails as loudly
            raise


class _Finder(MetaPathFinder):
    """Finds the package and, while its body has not run, its files."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == PACKAGE:
            spec = PathFinder.find_spec(name, path)
            if spec is not None:
                spec.loader = _LateLoader(spec.loader)
            return spec
        top, _, file = name.partition(".")
        if top != PACKAGE or type(sys.modules[PACKAGE]) is not _LatePackage:
            return None
        first = file.partition(".")[0]
        needed = first in ("metric", "collections") and f"{PACKAGE}.utilities" not in sys.modules
        if first not in EARLY_FILES or (needed and _early("utilities") is None):
            run_body(sys.modules[PACKAGE])
        loaded = sys.modules.get(name)
        return None if loaded is None else ModuleSpec(name, _Loaded(loaded), is_package=hasattr(loaded, "__path__"))


class _LateLoader(Loader):
    """Makes the package, and leaves its body to `inner`."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LatePackage(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing yet."""

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)  # get_source, get_data, path ... for tracebacks and inspection


class _Loaded(Loader):
    """A submodule that the body has imported meanwhile: it is that one, not a second."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec
