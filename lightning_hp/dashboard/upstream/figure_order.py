"""Figures of a study by identifier: optuna-dashboard keeps the identifiers in a set, and sends them in random order.

Its function that lists them is replaced by one that sorts, once a process. Of a version that is not known nothing is
replaced: the order is then random, as upstream.
"""

from __future__ import annotations

from typing import Any

from lightning_hp.dashboard.upstream.versions import is_known


def send_figures_in_order() -> bool:
    """Have the dashboard send a study's figures by identifier; returns whether it will."""
    if not is_known():
        return False
    import optuna_dashboard._app as application

    listing = getattr(application, "get_plotly_graph_objects", None)
    if listing is None:
        return False
    if not hasattr(listing, "unordered"):

        def in_order(attributes: dict[str, Any]) -> dict[str, str]:
            return dict(sorted(listing(attributes).items()))

        in_order.unordered = listing  # type: ignore[attr-defined]
        application.get_plotly_graph_objects = in_order
    return True
