"""One training from a learning rate that is a thousand times too low: alone, babysat, and replayed.

Run:    python examples/030_babysit.py
Takes:  about half a minute
"""

import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl

from lightning_hp import BatchNormClassifier, DigitsDataModule, PandaBabysitter
from lightning_hp.callbacks import ReplayPolicy

warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def train(callbacks):
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=20,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    module = BatchNormClassifier(64, 10, learning_rate=5e-5)
    trainer.fit(module, DigitsDataModule(batch_size=32))
    return module, float(trainer.callback_metrics["val_loss"])


def main():
    folder = Path(tempfile.mkdtemp())
    _, alone = train([])
    babysitter = PandaBabysitter(dirpath=folder)
    module, babysat = train([babysitter])
    for row in babysitter.rows:
        if row["rule"] != "wind_down" and row["id"]:
            print(f"step {row['step']:>4}: {row['what']} {row['from']:.4g} -> {row['to']:.4g}: {row['why']}")
    print(f"validation loss alone {alone:.4f}, babysat {babysat:.4f}")
    replayed, again = train([PandaBabysitter(policy=ReplayPolicy(folder / "panda.jsonl"), dirpath="")])
    same = all((a == b).all() for a, b in zip(module.parameters(), replayed.parameters(), strict=True))
    print(f"replayed {again:.4f}; the same weights: {same}")
    print(f"the picture: {folder / 'panda.html'}")


if __name__ == "__main__":
    main()
