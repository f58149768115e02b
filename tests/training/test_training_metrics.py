import numpy as np
import torch

from lightning_hp.training.metrics import RowMean


def test_mini_batches_of_any_size_give_the_mean_over_rows():
    values = np.random.default_rng(0).normal(size=37)
    metric = RowMean()
    for part in (values[:30], values[30:36], values[36:]):
        metric.update(torch.tensor(part.mean()), len(part))
    np.testing.assert_allclose(metric.compute().item(), values.mean(), rtol=1e-5)
    metric.reset()
    metric.update(torch.tensor(2.0), 3)
    assert metric.compute() == 2.0


def test_a_nan_is_not_hidden():
    metric = RowMean()
    metric.update(torch.tensor(float("nan")), 3)
    metric.update(torch.tensor(1.0), 3)
    assert metric.compute().isnan()
