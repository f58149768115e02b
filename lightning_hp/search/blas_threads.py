"""Linear algebra of the model with one thread, whatever BLAS is allowed.

The matrices have as many rows as a study has points, too few for a second thread to bring anything. But BLAS's threads
go on spinning for a while after each call, and take the cores from torch's: forty trials of small networks took half as
long again with them (two cores). And a sum is rounded by the number of threads: with one, the same study is the same on
machines with other numbers of cores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import scipy.linalg  # noqa: F401 - loads the libraries that are limited
from threadpoolctl import ThreadpoolController

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


@functools.cache
def _libraries() -> ThreadpoolController:
    """The libraries that are loaded: looking for them takes milliseconds."""
    return ThreadpoolController()


def one_blas_thread(function: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Decorate a function that computes with the model."""

    @functools.wraps(function)
    def limited(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        with _libraries().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited
