"""The picture of the confusion matrix holds the numbers and names."""

import io

import numpy as np
import pytest

from lit_tfm.callbacks.confusion import draw, short


def texts(axes):
    return [text.get_text() for text in axes.texts]


def rendered(figure):
    """As pixels: a label that can't be drawn fails here."""
    figure.savefig(file := io.BytesIO(), format="rgba")
    return np.frombuffer(file.getvalue(), dtype=np.uint8)


def test_counts_and_shares_of_rows():
    figure = draw(np.array([[3, 1], [0, 0]]), ("spam", "ham"))
    [axes] = figure.axes
    assert texts(axes) == ["3\n75%", "1\n25%", "0\n0%", "0\n0%"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["spam", "ham"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["spam", "ham"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    assert np.ptp(rendered(figure)) > 0


def test_many_labels_are_colours_only():
    names = tuple(f"label {i} with a name that is far too long for an axis" for i in range(60))
    figure = draw(np.eye(60, dtype=int) * 7, names)
    [axes] = figure.axes
    assert texts(axes) == []
    assert axes.get_xticklabels()[0].get_text() == short(names[0])
    assert max(figure.get_size_inches()) <= 15
    rendered(figure)


def test_a_small_matrix_for_each_of_several_labels():
    matrices = np.array([[[5, 1], [2, 4]], [[9, 0], [0, 3]], [[1, 1], [1, 1]], [[0, 0], [0, 0]], [[2, 0], [1, 9]]])
    figure = draw(matrices, ("a", "b", "c", "d", "e"))
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", "d", "e"]
    assert texts(figure.axes[0]) == ["5\n83%", "1\n17%", "2\n33%", "4\n67%"]
    rendered(figure)


@pytest.mark.parametrize("name", ["$x_1$", "50 % <b>", "日本", "", "a\nb"])
def test_any_name_can_be_drawn(name):
    rendered(draw(np.array([[1, 2], [3, 4]]), (name, "other")))
