"""``lightning-hp sample``: draw values on a scale and show how they spread."""

from __future__ import annotations

import json

from jsonargparse import Namespace

from lightning_hp.commands.output import write_line
from lightning_hp.space.scales import histogram, sample


def sample_verb(options: Namespace) -> int:
    """Print a histogram of the draws, or all of them as JSON.

    Raises:
        ValueError: If the bounds do not fit the scale.
    """
    draws = sample(options.low, options.high, options.number, options.scale, options.seed)
    if options.json:
        write_line(json.dumps(draws.tolist()))
    else:
        write_line(histogram(draws, options.low, options.high, options.scale))
    return 0
