"""The entry point: a Trainer of any project has an auditor where the environment says so, and only there."""

from importlib.metadata import entry_points

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_hp.callbacks import BatchNormAuditor
from lightning_hp.callbacks.audit.environment import EnvironmentAuditor
from lightning_hp.callbacks.factory import environment_callbacks

pytestmark = pytest.mark.filterwarnings("ignore")


def trainer(tmp_path, *callbacks):
    options = {"accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "logger": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(**options, **quiet, default_root_dir=tmp_path, callbacks=list(callbacks))


def auditors(of):
    return [callback for callback in of.callbacks if isinstance(callback, BatchNormAuditor)]


class Normed(BoringModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 2))

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(64, 32), 32)


def test_lightning_finds_the_factory():
    found = [
        point for point in entry_points(group="lightning.pytorch.callbacks_factory") if point.name == "lightning_hp"
    ]
    if not found:
        pytest.skip("installed before the entry point was there: pip install -e . again")
    assert next(iter(found)).load() is environment_callbacks


@pytest.fixture
def registered(monkeypatch):
    """Lightning's own look-up, with our factory in it, whatever is installed."""
    from lightning.pytorch.trainer.connectors import callback_connector

    monkeypatch.setattr(callback_connector, "_load_external_callbacks", lambda group: environment_callbacks())


@pytest.mark.parametrize("setting", [None, "", "0"])
def test_nothing_is_added_unless_asked(registered, monkeypatch, tmp_path, setting):
    monkeypatch.delenv("LIGHTNING_HP_AUDIT", raising=False)
    if setting is not None:
        monkeypatch.setenv("LIGHTNING_HP_AUDIT", setting)
    assert auditors(trainer(tmp_path)) == []


def test_an_environment_audits_every_trainer(registered, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_HP_AUDIT", "1")
    with_one = trainer(tmp_path)
    with_one.fit(Normed())
    (auditor,) = auditors(with_one)
    assert isinstance(auditor, EnvironmentAuditor)
    assert [layer["name"] for layer in auditor.result()["layers"]] == ["layer.0"]


def test_a_trainer_keeps_its_own_auditor_and_all_other_callbacks_are_called(registered, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_HP_AUDIT", "1")
    called = []

    class Last(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            called.append(stage)

    own = BatchNormAuditor()
    with_two = trainer(tmp_path, own, Last())
    with_two.fit(Normed())
    assert auditors(with_two) == [own]
    assert called == ["fit"]


def test_another_setting_is_refused(monkeypatch):
    monkeypatch.setenv("LIGHTNING_HP_AUDIT", "yes")
    with pytest.raises(ValueError, match="`LIGHTNING_HP_AUDIT` must be 0 or 1, got 'yes'"):
        environment_callbacks()
