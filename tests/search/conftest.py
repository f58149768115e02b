"""For all tests of the search: Optuna says nothing but errors."""

import pytest


@pytest.fixture(autouse=True)
def quiet(quiet_optuna: None) -> None:
    """For every test; a fixture of a module that runs studies sets its own level."""
