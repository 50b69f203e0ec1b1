"""A quicker start of the command line: torchmetrics' package body is run when something first asks for it.

Lightning wants two classes of torchmetrics, `Metric` and `MetricCollection`; importing the package for them runs a body
that brings in all its metrics, and through these scipy.signal and, where it is installed, transformers: 1.6 of the 5
seconds a training run spent on imports. torchmetrics and Lightning offer no switch, so `quicken()` puts a finder before
Python's own that gives torchmetrics as a module whose body has not run yet:

- `Metric`, `MetricCollection` and what `__about__` holds (`__version__`) come from their own files;
- any other name, and the import of any other submodule, first runs the body, once, in that same module.

The file of these two that draws plots is as late: matplotlib (0.4 s) comes with the first plot. Until then the types in
the signature of `Metric.plot` are those that torchmetrics has where matplotlib is not installed.

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

PACKAGE, PLOTS = "torchmetrics", "torchmetrics.utilities.plot"
EARLY_NAMES = {"Metric": "metric", "MetricCollection": "collections", "__version__": "__about__"}
LOGGER = "_logger"  # the body gives it a handler; until then it is the plain one of that name
EARLY_FILES = {"metric", "collections", "utilities", "__about__"}  # these need nothing of the rest


def quicken() -> None:
    """From now on, torchmetrics is imported late. Without effect where it has been imported already."""
    if PACKAGE not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Late(ModuleType):
    """A module before its body has run; afterwards it is a plain one."""

    def __dir__(self) -> list[str]:
        run_body(self)
        return dir(self)


class _LatePackage(_Late):
    """torchmetrics."""

    def __getattr__(self, name: str) -> object:
        if name == LOGGER:
            return logging.getLogger(PACKAGE)
        if name in EARLY_NAMES and (file := _early(EARLY_NAMES[name])):
            return getattr(file, name)
        if name.startswith("__") and name != "__all__":  # Python looking at the module, nobody using it
            raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
        run_body(self)
        return getattr(self, name)


class _LatePlots(_Late):
    """torchmetrics.utilities.plot."""

    def __getattr__(self, name: str) -> object:
        if name == "_AX_TYPE":
            return object
        if name == "_PLOT_OUT_TYPE":
            return tuple[object, object]
        if name == "plot_single_or_multi_val":
            return self._plot
        if name.startswith("__"):
            raise AttributeError(f"module {PLOTS!r} has no attribute {name!r}")
        run_body(self)
        return getattr(self, name)

    def _plot(self, *args: object, **kwargs: object) -> object:
        run_body(self)
        return vars(self)["plot_single_or_multi_val"](*args, **kwargs)


def _early(file: str) -> ModuleType | None:
    """A file of the package without its body, None where it can't do without."""
    try:
        if file != "__about__":
            importlib.import_module(f"{PACKAGE}.utilities")  # imports metric itself, and can't be imported by it
        return importlib.import_module(f"{PACKAGE}.{file}")
    except ImportError:
        return None


_body = threading.RLock()


def run_body(module: ModuleType) -> None:
    """Run the body if it has not run; what it imports of the package itself finds the module as it always does."""
    with _body:
        kind = type(module)
        if not issubclass(kind, _Late):
            return
        if kind is _LatePackage and PLOTS in sys.modules:
            run_body(sys.modules[PLOTS])  # everything the package's body imports gets the real ones
        module.__class__ = ModuleType
        try:
            module.__spec__.loader.inner.exec_module(module)
        except BaseException:
            module.__class__ = kind  # the next use tries again, and fails as loudly
            raise


class _Finder(MetaPathFinder):
    """Finds the package and, while its body has not run, its files."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == PACKAGE:
            spec = PathFinder.find_spec(name, path)
            if spec is not None:
                spec.loader = _LateLoader(spec.loader, _LatePackage)
            return spec
        top, _, file = name.partition(".")
        if top != PACKAGE or type(sys.modules[PACKAGE]) is not _LatePackage:
            return None
        if name == PLOTS and (spec := PathFinder.find_spec(name, path)) is not None:
            spec.loader = _LateLoader(spec.loader, _LatePlots)
            return spec
        first = file.partition(".")[0]
        needed = first in ("metric", "collections") and f"{PACKAGE}.utilities" not in sys.modules
        if first not in EARLY_FILES or (needed and _early("utilities") is None):
            run_body(sys.modules[PACKAGE])
        loaded = sys.modules.get(name)
        return None if loaded is None else ModuleSpec(name, _Loaded(loaded), is_package=hasattr(loaded, "__path__"))


class _LateLoader(Loader):
    """Makes the module, of this kind, and leaves its body to `inner`."""

    def __init__(self, inner: Loader, kind: type[_Late]) -> None:
        self.inner, self.kind = inner, kind

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.kind(spec.name)

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
