"""Text samples: they are written, and leave no trace in the run."""

import html
import re

import pytest
import torch

from lit_tfm.callbacks.confusion import ConfusionPicture
from lit_tfm.callbacks.samples import Samples, escape, markdown
from lit_tfm.tasks.masked_lm import MaskedLM

KINDS = ["masked_lm", "causal_lm", "span_corruption", "classification"]


class Watched(Samples):
    """Fails where samples disturb the random state or the mode of the model."""

    def on_validation_end(self, trainer, pl_module):
        before, mode = torch.random.get_rng_state(), pl_module.training
        super().on_validation_end(trainer, pl_module)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert pl_module.training == mode


@pytest.mark.parametrize("name", KINDS)
def test_samples_are_written_and_change_nothing(name, fit, read_events, tmp_path):
    task = fit(name, tmp_path / "with", Watched(count=3), ConfusionPicture())
    plain = fit(name, tmp_path / "without")
    for (key, a), b in zip(task.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    texts = read_events(tmp_path / "with").Tensors("samples/text_summary")
    assert [event.step for event in texts][-1] == 3
    assert len(texts) >= 3
    rows = texts[-1].tensor_proto.string_val[0].decode().splitlines()
    assert len(rows) == 2 + 3
    shown = html.unescape(rows[2])
    expected = {
        "masked_lm": r"\[MASK\]",
        "causal_lm": r"^\| [a-z ]{10} \| .* \|$",
        "span_corruption": r"<extra_id_0>",
        "classification": r"predicted (sad|glad); true sad \|$",
    }[name]
    assert re.search(expected, shown), shown
    images = read_events(tmp_path / "with").Tags()["images"]
    assert images == (["pictures/confusion_val"] if name == "classification" else [])


def test_nothing_is_computed_without_tensorboard(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(MaskedLM, "samples", lambda *args, **kwargs: pytest.fail("samples were made for nobody"))
    fit("masked_lm", tmp_path, Samples(), logger=False)


def test_a_task_without_samples_is_left_alone(fit, read_events, tmp_path, monkeypatch):
    monkeypatch.delattr(MaskedLM, "samples")
    fit("masked_lm", tmp_path, Samples())
    assert "samples/text_summary" not in read_events(tmp_path).Tags()["tensors"]


@pytest.mark.parametrize(
    "text", ["a|b", "<extra_id_0> *x* _y_ `z`", "# no heading", "[link](http://x)", "a & b\\", "~~s~~ 1 - 2"]
)
def test_texts_are_shown_as_they_are(text):
    cell = escape(text)
    assert html.unescape(cell) == text
    # No sign is left that markdown or HTML gives a meaning, but `&` and `#` of the references themselves.
    assert not re.search(r"[|<>*_`\[\]()~\\]", cell)
    assert not re.search(r"&(?!#\d+;|[a-z]+;)|(?<!&)#", cell)


def test_one_row_a_pair():
    assert markdown([("a\nb", "c\td"), ("e", "")]).splitlines() == [
        "| asked | answered |",
        "| --- | --- |",
        "| a↵ b | c d |",
        "| e |  |",
    ]
