"""A run of seconds: what tests of stops, disks and memory have in common."""

NO_PICTURES = [f"callbacks.{name}=null" for name in ("layout", "samples", "confusion", "attention", "projector")]
SMALL = [
    "model.d_model=32",
    "model.n_layers=1",
    "model.n_heads=2",
    "data.block_size=32",
    "data.batch_size=8",
    "data.val_limit=8",
    "tokenizer.vocab_size=300",
    "trainer.precision=32",
    "trainer.accelerator=cpu",
    "trainer.log_every=1",
    "budget=null",
]
