"""Tune a LightningModule from Python, without any file: a BatchNorm MLP on handwritten digits.

Run: python examples/001_tune_in_python.py

Twenty trials of up to eight epochs. Run it again and nothing is trained: the study is complete. Raise TRIALS and it
goes on where it was. Everything it writes is in runs/digits-python; open report.html there.
"""

from lightning_hp import BatchNormClassifier, DigitsDataModule, tune

TRIALS, EPOCHS = 20, 8

# Keys are arguments of the module or of the data module. Tier A is searched first; the others open when the number of
# trials allows, and stay at their default until then.
SPACE = {
    "learning_rate": {"low": 1e-3, "high": 1.0, "scale": "log", "tier": "A", "default": 0.03},
    "momentum": {"low": 0.5, "high": 0.99, "scale": "one_minus_log", "tier": "B", "default": 0.9},
    "hidden_units": {"low": 16, "high": 192, "tier": "B", "default": 64},
    "batch_size": {"choices": [32, 64, 128], "tier": "B", "default": 64},
    "num_layers": {"low": 1, "high": 3, "tier": "C", "default": 2},
}


def module(**hyperparameters):
    """Any function that gives a LightningModule will do; arguments that are not tuned are fixed here."""
    return BatchNormClassifier(schedule="cosine", learning_rate_decay=1.0, **hyperparameters)


def data(batch_size: int = 64):
    return DigitsDataModule(batch_size=batch_size)


def main() -> None:
    result = tune(
        module,
        data,
        SPACE,
        monitor="val_loss",
        trials=TRIALS,
        max_epochs=EPOCHS,
        name="digits-python",
        trainer={"accelerator": "cpu", "devices": 1},
    )
    print(f"best of {len(result.study.trials)} trials: number {result.trial}, validation loss {result.value:.4f}")
    for name, value in result.natural.items():
        print(f"  {name:<16} {value:.4g}")
    print(f"test accuracy {result.test['test_accuracy']:.4f}")
    print(f"weights: {result.checkpoint}\nreport:  {result.report}")

    # the weights of the best trial, ready to use
    best = BatchNormClassifier.load_from_checkpoint(result.checkpoint, weights_only=True).eval()
    digits = data()
    digits.setup()
    features, classes = next(iter(digits.test_dataloader()))
    print("first test digits:", classes[:10].tolist(), "predicted:", best(features[:10]).argmax(dim=1).tolist())


if __name__ == "__main__":
    main()
