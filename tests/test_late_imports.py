"""torchmetrics comes late and whole: a start does without its body, and whoever uses it finds the same as ever.

Each case is a process of its own, as the import of a package happens once in a process.
"""

import subprocess
import sys

import pytest

CASES = {
    "lightning needs no body": """
import lightning
from lightning.pytorch.core.module import Metric
late = {"torchmetrics.functional", "scipy", "transformers", "matplotlib"}
assert not late.intersection(sys.modules), late.intersection(sys.modules)
import torchmetrics
assert torchmetrics.__version__ and torchmetrics.__file__.endswith("__init__.py")
assert "torchmetrics.functional" not in sys.modules
assert torchmetrics.Metric is Metric and issubclass(torchmetrics.classification.BinaryAccuracy, Metric)
assert "torchmetrics.functional" in sys.modules  # the body has run
""",
    "a submodule first": """
from torchmetrics.classification import MulticlassConfusionMatrix
import torchmetrics
assert torchmetrics.classification.MulticlassConfusionMatrix is MulticlassConfusionMatrix
assert sys.modules["torchmetrics.classification"] is torchmetrics.classification
assert torchmetrics.classification.__spec__.loader.get_source("torchmetrics.classification")
""",
    "a deep submodule first": """
import torchmetrics.functional.text.perplexity
from torchmetrics.functional.text import perplexity
module = sys.modules["torchmetrics.functional.text.perplexity"]
assert module.perplexity is perplexity and module.__spec__.origin == module.__file__
""",
    "names of the body": """
from torchmetrics import Accuracy, functional
assert functional.accuracy and Accuracy(task="multiclass", num_classes=3)
""",
    "a version whose files want more of the body": """
from lit_tfm import late_imports
late_imports.LOGGER = "none"  # so that torchmetrics.utilities asks for the body while it is imported
from torchmetrics import Metric
import torchmetrics
assert "torchmetrics.functional" in sys.modules and torchmetrics.Metric is Metric
assert issubclass(torchmetrics.Accuracy, Metric) or issubclass(torchmetrics.MeanMetric, Metric)
""",
    "its own files first": """
import torchmetrics.metric, torchmetrics.collections
from torchmetrics.utilities.data import dim_zero_cat
assert "torchmetrics.functional" not in sys.modules
assert torchmetrics.Metric is torchmetrics.metric.Metric and issubclass(torchmetrics.Accuracy, torchmetrics.Metric)
assert torchmetrics.collections.MetricCollection is torchmetrics.MetricCollection
""",
    "everything": """
from torchmetrics import *
assert MeanMetric
""",
    "dir and reload": """
import importlib, torchmetrics
assert "Accuracy" in dir(torchmetrics)
assert importlib.reload(torchmetrics) is torchmetrics
""",
    "what is not there": """
import torchmetrics
try:
    torchmetrics.Acuracy
except AttributeError as error:
    assert "Acuracy" in str(error)
else:
    raise SystemExit("no AttributeError")
try:
    import torchmetrics.nothing
except ModuleNotFoundError as error:
    assert error.name == "torchmetrics.nothing"
else:
    raise SystemExit("no ModuleNotFoundError")
""",
    "metrics pickle and a module holds them": """
import copy, pickle, lightning, torch
from torchmetrics import MetricCollection
from torchmetrics.aggregation import MeanMetric
metric = MeanMetric()
metric.update(torch.tensor([1.0, 3.0]))
assert float(pickle.loads(pickle.dumps(metric)).compute()) == float(copy.deepcopy(metric).compute()) == 2.0
collected = MetricCollection([MeanMetric()])
assert isinstance(collected, __import__("lightning").pytorch.core.module.MetricCollection)
""",
    "plots": """
from torchmetrics import Metric
import torchmetrics.utilities.plot
assert "matplotlib" not in sys.modules
class Last(Metric):
    def __init__(self):
        super().__init__()
        self.add_state("value", torch.tensor(0.0))
    def update(self, value):
        self.value = value
    def compute(self):
        return self.value
last = Last()
last.update(torch.tensor(2.0))
import os
os.environ["MPLBACKEND"] = "agg"
figure, axes = last._plot()
assert type(figure).__name__ == "Figure" and "torchmetrics.functional" not in sys.modules
assert type(torchmetrics.utilities.plot).__name__ == "module" and torchmetrics.utilities.plot.plot_curve
""",
    "plots of the body": """
from torchmetrics import MeanMetric, MetricCollection
import torchmetrics.utilities.plot as plots
assert type(plots).__name__ == "module" and plots._AX_TYPE is sys.modules["matplotlib.axes"].Axes
from torchmetrics.classification import MulticlassConfusionMatrix
import torchmetrics.classification.confusion_matrix as file
assert file.plot_confusion_matrix is plots.plot_confusion_matrix
""",
    "imported before": """
import torchmetrics
from lit_tfm.late_imports import quicken
quicken()
import importlib
assert type(torchmetrics).__name__ == "module" and torchmetrics.Accuracy
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_torchmetrics_is_whole_however_it_is_asked_for(case: str) -> None:
    late = "" if case == "imported before" else "from lit_tfm.late_imports import quicken; quicken(); "
    code = f"import sys; {late}import torch\n{CASES[case]}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
