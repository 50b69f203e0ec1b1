"""Every conf/model yaml is a model, of the size its name promises; the papers' ones to the last parameter."""

import importlib
from pathlib import Path

import pytest
import torch
import yaml

from lit_tfm.models.cost import count_parameters, parameters

CONF = Path(__file__).parents[2] / "conf" / "model"
PRESETS = sorted(path.stem for path in CONF.glob("*.yaml"))


def read(name):
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    module, cls = options.pop("_target_").rsplit(".", 1)
    return getattr(importlib.import_module(module), cls), options


@pytest.mark.parametrize("name", PRESETS)
def test_it_is_a_model(name):
    architecture, options = read(name)
    with torch.device("meta"):
        model = architecture(vocab_size=64, **options)
    assert model.config.max_length == options.get("max_length", 512)


@pytest.mark.parametrize("name", PRESETS)
def test_it_repeats_no_default(name):
    architecture, options = read(name)
    defaults = {field: f.default for field, f in architecture.Config.__dataclass_fields__.items()}
    sizes = ("d_model", "n_layers", "n_heads", "max_length")  # a size is named even where it is the default's
    assert [key for key, value in options.items() if key not in sizes and value == defaults[key]] == []


def test_all_sizes_of_the_issue_are_there():
    berts = {f"bert_{size}" for size in ("tiny", "mini", "small", "medium", "base", "large")}
    others = {"gpt_tiny", "gpt_small", "gpt2_124m", "gpt2_355m", "t5_tiny", "t5_small", "t5_base", "char_gpt"}
    papers = {"bert_base_2018", "gpt2_2019", "t5_v1_1", "transformer_2017"}
    assert berts | others | papers <= set(PRESETS)


@pytest.mark.parametrize(
    ("name", "layers", "width"),
    [("tiny", 2, 128), ("mini", 4, 256), ("small", 4, 512), ("medium", 8, 512), ("base", 12, 768), ("large", 24, 1024)],
)
def test_bert_sizes(name, layers, width):
    config = read(f"bert_{name}")[1]
    assert (config["n_layers"], config["d_model"], config["n_heads"]) == (layers, width, width // 64)


@pytest.mark.parametrize(
    ("name", "vocabulary", "published"),
    [
        # `BertModel.from_pretrained("bert-base-uncased")` has 109,482,240 parameters, 768 * 768 + 768 in its pooler.
        ("bert_base_2018", 30522, 109_482_240 - 590_592),
        # The checkpoint OpenAI published; also the count that nanoGPT and Hugging Face print for "gpt2".
        ("gpt2_2019", 50257, 124_439_808),
        # google/t5-v1_1-base and -small.
        ("t5_v1_1", 32128, 247_577_856),
        ("t5_v1_1_small", 32128, 76_961_152),
    ],
)
def test_papers_to_the_last_parameter(name, vocabulary, published):
    architecture, options = read(name)
    assert count_parameters(architecture, vocab_size=vocabulary, **options) == published


def test_vaswani_base_is_as_large_as_the_paper_s_table_says():
    """Table 3: 65 million, rounded, with a vocabulary of "about 37000"."""
    architecture, options = read("transformer_2017")
    assert count_parameters(architecture, vocab_size=37_000, **options) == pytest.approx(65e6, rel=0.04)


def test_counting_makes_no_weights():
    architecture, options = read("bert_tiny")
    real = architecture(vocab_size=64, **options)
    assert count_parameters(architecture, head=False, vocab_size=64, **options) == parameters(real)
    assert count_parameters(architecture, vocab_size=64, **options) == parameters(real)  # one table for both
    untied = {**options, "tie_embeddings": False}
    assert count_parameters(architecture, vocab_size=64, **untied) == parameters(real) + 64 * 128


def test_gpt2_starts_as_published():
    architecture, options = read("gpt2_2019")
    model = architecture(vocab_size=64, **{**options, "n_layers": 3, "max_length": 16})
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[1].feed_forward.down.weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.05)


@pytest.mark.parametrize("name", ["t5_v1_1", "transformer_2017"])
def test_published_models_start_with_logits_of_unit_size(name):
    """Attention logits near 1 at the start: neither flat nor saturated, with T5's own scale too."""
    architecture, options = read(name)
    model = architecture(vocab_size=64, **{**options, "n_layers": 1, "dropout": 0.0})
    _, weights = model.encode(torch.randint(64, (2, 32)), return_attention=True)
    spread = weights[0].log().std(-1).mean().item()
    assert 0.5 < spread < 2
