"""The small runs whose interruption is tested: four recipes, with everything on that could go wrong."""

from pathlib import Path

TINY = [
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.dropout=0.2",
    "trainer.precision=32",
    "trainer.accelerator=cpu",
    "trainer.log_every=1",
    "trainer.max_steps=9",
    "trainer.val_every=3",
    "budget=null",
    "seed=3",
    "callbacks=[default,ema]",
    "++callbacks.checkpoints.every=2",
]
BLOCKS = ["data.block_size=32", "data.batch_size=6", "data.val_limit=9", "tokenizer.vocab_size=300"]
ROWS = ["data.batch_size=40", "test=false"]  # 216 rows to learn from: an epoch is 6 steps
RECIPES = {
    "packed causal LM, Muon": ["experiment=gpt_small", *BLOCKS],
    "masked LM, AdamW": ["experiment=bert_small", "optimizer=adamw", *BLOCKS],
    "span corruption, Adafactor": ["experiment=t5_small", "optimizer=adafactor", *BLOCKS],
    "bucketed classification, Lion": ["experiment=emotion_bert", "data=csv", "optimizer=lion", *ROWS],
}
VARIANTS = {
    "plain": [],
    "accumulation": ["trainer.accumulate=3"],
    "two loader workers": ["data.num_workers=2"],
}


def options(recipe: str, variant: str, text_folder: Path, labelled_csv: Path, cache: Path) -> list[str]:
    data = labelled_csv if "classification" in recipe else text_folder
    return [*RECIPES[recipe], *TINY, *VARIANTS[variant], f"data.path={data}", f"cache_dir={cache}"]
