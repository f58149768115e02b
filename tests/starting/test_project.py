"""What ``init`` answers to what people type first for a project without LightningCLI."""

import pytest

from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.starting.project import file_for_classes

MODULE = """
import lightning as L
from lightning.pytorch import LightningDataModule

class Net(L.LightningModule):
    def __init__(self, lr: float = 0.1):
        super().__init__()
"""
DATA = """
class {}(LightningDataModule):
    pass
"""


@pytest.fixture
def project(tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"project_{abs(hash(request.node.name))}"

    def write(text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_script_in_place_of_a_class_is_told_which_classes_it_has(project):
    name = project(MODULE)
    with pytest.raises(ConfigError, match=rf"`project` must be .*got the script '{name}.py'; it has {name}:Net$"):
        file_for_classes(f"{name}.py", None, 3)


def test_a_script_with_a_lightning_cli_is_told_the_command_for_it(project):
    name = project("from lightning.pytorch.cli import LightningCLI\nLightningCLI()\n")
    with pytest.raises(ConfigError, match=rf"for its LightningCLI: lightning-hp init FILE.yaml --cli {name}.py$"):
        file_for_classes(f"{name}.py", None, None)


def test_a_script_that_does_not_exist_is_told_what_a_project_is(project):
    with pytest.raises(ConfigError, match=r"`project` must be .*package.module:Module, got the script 'nowhere.py'$"):
        file_for_classes("nowhere.py", None, None)


def test_loaders_that_a_function_makes_are_tuned_from_python(project):
    name = project(MODULE)
    with pytest.raises(ConfigError, match=r"no LightningDataModule; .*: lightning_hp.tune\(Net, make_loaders, ...\)$"):
        file_for_classes(f"{name}:Net", None, 3)


def test_several_data_modules_are_named(project):
    name = project(MODULE + DATA.format("One") + DATA.format("Two"))
    with pytest.raises(ConfigError, match=rf"`--data_class` is missing: .* beside it are {name}:One, {name}:Two$"):
        file_for_classes(f"{name}:Net", None, 3)


def test_the_only_data_module_is_taken(project):
    name = project(MODULE + DATA.format("One"))
    assert f"data: {{class_path: {name}.One}}" in file_for_classes(f"{name}:Net", None, 3)


@pytest.mark.parametrize("argument", ["hparams", "width: int", "*, config: dict"])
def test_a_module_that_needs_arguments_is_told_the_two_ways(project, argument):
    name = project(MODULE.replace("lr: float = 0.1", argument))
    needed = argument.removeprefix("*, ").partition(":")[0]
    with pytest.raises(
        ConfigError, match=rf"defaults, got {name}:Net, which needs {needed}; .* lightning_hp.tune\(lambda"
    ):
        file_for_classes(f"{name}:Net", None, 3)


def test_keyword_arguments_of_any_name_are_not_needed(project):
    name = project(MODULE.replace("lr: float = 0.1", "*args, lr: float = 0.1, **kwargs") + DATA.format("One"))
    assert "One" in file_for_classes(f"{name}:Net", None, 3)
