"""The projector's files: the right vectors beside the right names, whatever the names hold; written over, not added."""

from types import SimpleNamespace

import numpy as np
import pytest
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from lit_tfm.callbacks import projector
from lit_tfm.callbacks.projector import Projector, frequencies, most_frequent, write


def test_the_final_embeddings_are_in_the_run_folder(fit, tmp_path):
    task = fit("masked_lm", tmp_path, Projector(count=7))
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    [embedding] = config.embeddings
    vectors = np.loadtxt(tmp_path / embedding.tensor_path, delimiter="\t")
    table = task.model.embedding.weight.detach().numpy()
    assert vectors.shape == (7, table.shape[1])
    np.testing.assert_allclose(vectors, table[:7], rtol=1e-3)  # nothing is known of frequencies here: the first ids
    names = (tmp_path / embedding.metadata_path).read_text().splitlines()
    assert names[:3] == ["token\tcount", "[PAD]\t0", "[UNK]\t0"]
    assert len(names) == 1 + 7
    assert sorted(path.name for path in (tmp_path / "projector").iterdir()) == ["tokens.tsv", "vectors.tsv"]


def test_trials_of_a_sweep_have_none(fit, tmp_path):
    (tmp_path / "trial.json").write_text("{}")
    fit("masked_lm", tmp_path, Projector(count=7))
    assert not (tmp_path / "projector").exists()
    assert not (tmp_path / "projector_config.pbtxt").exists()


@pytest.mark.parametrize("names", [["a\tb", "c\nd", "<script>alert(1)</script>", '"', "", " ", "\r", "\x00"]])
def test_a_name_is_one_cell(names, tmp_path):
    shown = [projector.visible(name) for name in names]
    write(tmp_path, np.zeros((len(names), 2)), shown, np.arange(len(names)))
    rows = (tmp_path / "projector" / "tokens.tsv").read_text().split("\n")
    assert rows[-1] == ""
    assert [row.count("\t") for row in rows[:-1]] == [1] * (1 + len(names))
    assert all(row.split("\t")[0] for row in rows[:-1])


def test_frequency_is_that_of_the_training_data():
    store = SimpleNamespace(tokens=np.array([3, 3, 1, 5, 3, 1], dtype=np.uint8))
    trainer = SimpleNamespace(datamodule=SimpleNamespace(stores={"train": store}))
    counts = frequencies(trainer, 8)
    assert counts.tolist() == [0, 2, 0, 3, 0, 1, 0, 0]
    assert most_frequent(counts, 2).tolist() == [3, 1]
    assert most_frequent(counts, 100).tolist() == [3, 1, 5]  # a token that never occurs was never learnt
    assert most_frequent(np.zeros(8), 3).tolist() == [0, 1, 2]
