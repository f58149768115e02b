"""Tunes train.py, which knows nothing of it.

Run: python tune.py
"""

from train import Diabetes, Progression, settings

from lightning_hp import tune

if __name__ == "__main__":
    result = tune(
        Progression,
        Diabetes,
        {
            "lr": "auto",
            "weight_decay": "auto",
            "batch_size": "auto",
            "width": {"low": 8, "high": 128},
            "trainer.gradient_clip_val": {"low": 0.1, "high": 10.0, "scale": "log"},
        },
        monitor="val_mae",
        trials=6,
        trainer=settings(),
        name="diabetes",
    )
    print(f"trial {result.trial}, val_mae {result.value:.6f}, {result.natural}, {result.checkpoint}")
