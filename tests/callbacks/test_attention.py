"""Attention maps: the true weights of a fixed text, drawn where they belong, without a trace in the run."""

import numpy as np
import pytest
import torch

from lit_tfm.callbacks.attention import CELL, Attention, AttentionMaps, attend, draw, habits, probe, visible
from lit_tfm.callbacks.layout import Layout
from lit_tfm.callbacks.projector import Projector

KINDS = ["masked_lm", "causal_lm", "span_corruption", "classification", "label_text"]
TEXT = "the cat that the dogs had chased"


class Watched(AttentionMaps):
    """Fails where a picture disturbs the random state or the mode of the model."""

    def on_validation_end(self, trainer, pl_module):
        before, mode = torch.random.get_rng_state(), pl_module.training
        super().on_validation_end(trainer, pl_module)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert pl_module.training == mode
        assert not any(
            parameter.grad is not None and parameter.grad.isnan().any() for parameter in pl_module.parameters()
        )


@pytest.mark.parametrize("name", KINDS)
def test_pictures_are_written_and_change_nothing(name, fit, read_events, tmp_path):
    task = fit(name, tmp_path / "with", Watched(TEXT, tokens=12, every=2), Projector(), Layout())
    plain = fit(name, tmp_path / "without")
    for (key, a), b in zip(task.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    events = read_events(tmp_path / "with")
    expected = {
        "causal_lm": ["decoder"],
        "span_corruption": ["cross", "decoder", "encoder"],
        "label_text": ["cross", "encoder"],
    }.get(name, ["encoder"])
    assert sorted(events.Tags()["images"]) == [f"pictures/attention_{kind}" for kind in expected]
    steps = [event.step for event in events.Images(f"pictures/attention_{expected[0]}")]
    assert steps == [1, 3]  # the first and every second, of which the last is one


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_those_of_the_model_and_rows_add_up_to_one(name, make_task):
    task = make_task(name).eval()
    found = attend(task, probe(task, TEXT, 12))
    for attention in found:
        layers, heads, rows, columns = attention.weights.shape
        assert (layers, heads) == (task.model.config.n_layers, task.model.config.n_heads)
        assert (rows, columns) == (len(attention.looking), len(attention.seen))
        np.testing.assert_allclose(attention.weights.sum(-1), 1.0, atol=1e-5)
        if attention.name == "decoder":
            assert (np.triu(attention.weights, 1) == 0).all()  # it looks back only


@pytest.mark.parametrize("name", KINDS)
def test_a_text_longer_than_the_model_has_positions_for_is_cut(name, make_task):
    task = make_task(name).eval()
    assert attend(task, probe(task, TEXT * 50, 10_000))


def test_the_probe_goes_the_way_of_training_texts(make_task):
    task = make_task("masked_lm")
    batch = probe(task, TEXT, 12)
    tokens = [task.facts.tokenizer.token(i) for i in batch["input_ids"][0].tolist()]
    assert len(tokens) == 1 + 12  # the separator before it, as running text is stored
    assert tokens[0] == "[SEP]"
    assert tokens.count("[MASK]") == round(0.3 * 12)
    again = probe(task, TEXT, 12)
    assert torch.equal(batch["input_ids"], again["input_ids"])  # the same masks at every validation


def test_cross_attention_says_what_a_labels_first_word_is_drawn_from(make_task):
    task = make_task("label_text").eval()
    cross = {attention.name: attention for attention in attend(task, probe(task, TEXT, 12))}["cross"]
    assert cross.looking == ["[PAD]"]
    assert cross.seen[-1] == "[SEP]"


def test_a_task_of_other_examples_is_left_alone(fit, read_events, tmp_path, monkeypatch):
    from lit_tfm.tasks.masked_lm import MaskingCollator

    real = MaskingCollator.__call__

    def pairs_only(self, examples):
        if examples[0]["key"].index == 0 and len(examples) == 1:
            raise KeyError("target")
        return real(self, examples)

    monkeypatch.setattr(MaskingCollator, "__call__", pairs_only)
    fit("masked_lm", tmp_path, AttentionMaps())
    assert not read_events(tmp_path).Tags()["images"]


def test_nothing_is_computed_without_tensorboard(fit, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_tfm.callbacks.attention.probe", lambda *a: pytest.fail("a picture for nobody"))
    monkeypatch.setattr("lit_tfm.callbacks.projector.whole", lambda *a: pytest.fail("vectors for nobody"))
    fit("masked_lm", tmp_path, AttentionMaps(), Projector(), logger=False)


def test_a_cell_is_dark_where_the_weight_is():
    weights = np.zeros((2, 3, 4, 5))
    weights[1, 2, 3, 0] = 1.0
    picture = np.asarray(draw(Attention("cross", weights, list("abcd"), list("vwxyz")))).astype(int)
    dark = np.argwhere(np.abs(picture - (8, 48, 107)).sum(-1) == 0)
    assert len(dark) == CELL * CELL
    grey = (picture == 0x99).all(-1)
    frames = np.argwhere(grey & (grey.sum(0) > 40) & (grey.sum(1, keepdims=True) > 40))  # corners; letters have few
    (top, left), (bottom, right) = dark.min(0), dark.max(0)
    # In the last head of the last layer: at its left edge, in its lowest row.
    assert bottom == frames[:, 0].max() - 1
    assert frames[:, 1].max() - left == 5 * CELL
    assert (bottom - top, right - left) == (CELL - 1, CELL - 1)


@pytest.mark.parametrize("size", [(1, 1), (12, 12), (48, 64)])
def test_any_number_of_heads_fits_a_picture(size):
    labels = ["a very long entry of the vocabulary", "日本", "", "$x$"]
    weights = np.full((*size, 4, 4), 0.25)
    image = draw(Attention("encoder", weights, labels, labels))
    assert max(image.size) < 3600


def test_labels_show_what_cannot_be_seen():
    assert visible("Ġthe") == "␣the"
    assert visible("a\tb\nc\r\x00") == "a→b↵c��"
    assert visible("") == "∅"


def test_habits_tell_heads_apart():
    before, flat = np.eye(4, k=-1), np.full((4, 4), 0.25)
    before[0, 0] = 1.0
    one, two = habits(Attention("encoder", np.stack([before, flat])[None], list("abcd"), list("abcd")))
    assert (one["layer"], one["head"], two["head"]) == (1, 1, 2)
    assert (one["before"], one["itself"], one["bits"]) == (1.0, 0.25, 0.0)
    assert (two["before"], two["itself"], two["first"], two["bits"]) == (0.25, 0.25, 0.25, 2.0)
    assert "before" not in habits(Attention("cross", flat[None, None], list("abcd"), list("abcd")))[0]
