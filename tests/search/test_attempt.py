"""What an attempt changes in a trial's config, and what it goes on with."""

import pytest
from interruption import Interrupt
from small_runs import NO_PICTURES, SMALL

from lit_tfm import config
from lit_tfm.search.attempt import PICTURES, leave_out_pictures, train
from lit_tfm.session import Session


def test_a_trial_draws_no_pictures_unless_the_sweep_names_them(a_sweep) -> None:
    for words, kept in (([], set()), (["fixed.callbacks.samples.count=2"], {"samples"})):
        settings = a_sweep(*words)
        params = {"optimizer.lr": 0.01}
        cfg = settings.compose(params, 0)
        assert set(cfg.callbacks) >= PICTURES
        leave_out_pictures(cfg, " ".join(settings.command_words(params)))
        assert {name for name in PICTURES if cfg.callbacks[name] is not None} == kept
        assert cfg.callbacks.checkpoints is not None


def test_a_trial_that_halved_its_micro_batches_goes_on_where_it_was(tmp_path, session_cache, text_folder) -> None:
    words = ["experiment=bert_small", "data=text", f"data.path={text_folder}", f"cache_dir={session_cache}", *SMALL]
    words += [*NO_PICTURES, "auto_batch=true", "trainer.max_steps=4", "trainer.val_every=2", f"output_dir={tmp_path}"]
    with pytest.raises(SystemExit):
        Session(
            config.compose([*words, "trainer.accumulate=2"]), quiet=True, callbacks=[Interrupt("batch@5", "signal")]
        ).run()
    begun = (tmp_path / "metrics.csv").read_text()
    assert train(config.compose(words)).summary["steps"] == 4
    assert (tmp_path / "metrics.csv").read_text().startswith(begun)
