"""``lightning-hp dashboard``: serve optuna-dashboard on studies, on this machine."""

from __future__ import annotations

from jsonargparse import Namespace

from lightning_hp.dashboard.server import serve_command


def dashboard_verb(options: Namespace) -> int:
    """Serve until it is stopped."""
    return serve_command(
        options.study,
        host=options.host,
        port=options.port,
        read_only=options.read_only,
        password_file=options.password_file,
        hosts=options.hosts,
        open_browser=options.open_browser,
    )
