"""The order of a study's figures: sorted of the version that is known, upstream's own of any other."""

import optuna_dashboard._app as application
import pytest

from lightning_hp.dashboard.upstream import versions
from lightning_hp.dashboard.upstream.figure_order import send_figures_in_order

NAMES = [f"lightning-hp-{i}-x" for i in range(1, 7)]
ATTRIBUTES = {f"dashboard:plot_data:{name}:0": "{}" for name in reversed(NAMES)}


@pytest.fixture
def upstream(monkeypatch):
    """The dashboard's own function, put back afterwards."""
    listing = getattr(application.get_plotly_graph_objects, "unordered", application.get_plotly_graph_objects)
    monkeypatch.setattr(application, "get_plotly_graph_objects", listing)
    return listing


def test_figures_come_in_order_and_are_those_of_the_dashboard(upstream):
    assert send_figures_in_order()
    assert send_figures_in_order()  # twice does no harm
    sent = application.get_plotly_graph_objects(ATTRIBUTES)
    assert list(sent) == NAMES
    assert sent == upstream(ATTRIBUTES)
    assert application.get_plotly_graph_objects.unordered is upstream


@pytest.mark.parametrize("installed", ["0.20.3", "0.22.0", "1.21.0", "0.210.0"])
def test_another_version_is_left_as_it_is(upstream, monkeypatch, installed):
    monkeypatch.setattr(versions, "version", lambda package: installed)
    assert not send_figures_in_order()
    assert application.get_plotly_graph_objects is upstream


def test_a_function_of_another_name_is_left_alone(upstream, monkeypatch):
    monkeypatch.delattr(application, "get_plotly_graph_objects")
    assert not send_figures_in_order()
