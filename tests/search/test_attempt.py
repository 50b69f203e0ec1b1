"""What an attempt changes in a trial's config."""

from lit_tfm.search.attempt import PICTURES, leave_out_pictures


def test_a_trial_draws_no_pictures_unless_the_sweep_names_them(a_sweep) -> None:
    for words, kept in (([], set()), (["fixed.callbacks.samples.count=2"], {"samples"})):
        settings = a_sweep(*words)
        params = {"optimizer.lr": 0.01}
        cfg = settings.compose(params, 0)
        assert set(cfg.callbacks) >= PICTURES
        leave_out_pictures(cfg, " ".join(settings.command_words(params)))
        assert {name for name in PICTURES if cfg.callbacks[name] is not None} == kept
        assert cfg.callbacks.checkpoints is not None
