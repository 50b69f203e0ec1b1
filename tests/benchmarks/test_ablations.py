"""Every change of an ablation is one that the product knows, and changes something."""

import ablations
import pytest

from lit_tfm import config

CHANGES = [(name, change) for name, recipe in ablations.RECIPES.items() for change in recipe.changes]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_a_change_composes_and_changes_something(name, change) -> None:
    recipe = ablations.RECIPES[name]
    shipped, changed = (config.compose([*recipe.words, *words]) for words in ([], recipe.changes[change]))
    assert shipped != changed


@pytest.mark.slow
def test_it_runs_tiny(text_folder, session_cache, capsys) -> None:
    words = ["data.val_limit=4", "data.block_size=16", "tokenizer.vocab_size=300", "model.n_layers=1"]
    given = ["masked_words", "--path", str(text_folder), "--rounds", "1", "--steps", "2", "--only", "AdamW", "--dry"]
    ablations.main([*given, *words, "data.batch_size=4", f"cache_dir={session_cache}"])
    assert "| AdamW for all, 1e-3 |" in capsys.readouterr().out
