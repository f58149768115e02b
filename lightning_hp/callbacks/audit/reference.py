"""The validation moments of one model as a file of their own, and whether they belong to the weights at hand.

Moments of layer inputs mean something for the weights that they were taken with and for no others: a model trained
again, on the same data, has other ones. A file of moments therefore carries a fingerprint of the weights, and is used
only where it fits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_hp.batchnorm.reference import Reference
from lightning_hp.callbacks.audit.files import write_json
from lightning_hp.callbacks.audit.record import SCHEMA

__all__ = ["STATE_KEY", "read_reference", "weights_fingerprint", "write_reference"]

#: of the auditor, among the callbacks of a checkpoint
STATE_KEY = "BatchNormAuditor"
#: values looked at in a tensor, evenly spaced: any step of training changes nearly all of them
_VALUES = 256


def weights_fingerprint(state: Mapping[str, Any]) -> str:
    """Hash of the names, shapes and some values of all tensors of a state dict; 16 hexadecimal digits.

    Args:
        state: what `Module.state_dict()` gives; what is no tensor is left out.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):
            continue
        flat = value.detach().reshape(-1)
        some = flat[torch.linspace(0, max(len(flat) - 1, 0), min(len(flat), _VALUES)).long().to(flat.device)]
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(some.cpu().to(torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_reference(path: Path, checkpoint: Mapping[str, Any]) -> bool:
    """Write the moments that the auditor left in a checkpoint, with the fingerprint of its weights.

    Args:
        path: the file.
        checkpoint: a loaded Lightning checkpoint.

    Returns:
        Whether there are any: False where the training had no auditor, or the model has no such layers.
    """
    layers = checkpoint.get("callbacks", {}).get(STATE_KEY, {}).get("reference")
    if not layers:
        return False
    write_json(path, {"schema": SCHEMA, "weights": weights_fingerprint(checkpoint["state_dict"]), "layers": layers})
    return True


def read_reference(path: Path) -> tuple[Reference, str]:
    """The moments of a file, and the fingerprint of their weights; "" where the file does not say.

    Raises:
        ValueError: if the file cannot be read or holds no moments; in one line, with its path.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Reference.from_dict(content["layers"]), str(content.get("weights", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"`reference_moments` must be a file of validation moments, got {path}: {error}") from error
