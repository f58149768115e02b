"""For all tests: one thread, and nothing of a test is left behind for the next one."""

import os
import signal
import sys

import pytest

# read by torch, numpy and scikit-learn when they are first imported, so it also holds in subprocesses
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Restore environment variables (Lightning sets seeds in them), the import path, and the handler of Ctrl-C."""
    environment, path, handler = dict(os.environ), list(sys.path), signal.getsignal(signal.SIGINT)
    yield
    current = os.environ.pop("PYTEST_CURRENT_TEST", None)
    os.environ.clear()
    os.environ.update(environment)
    if current is not None:
        os.environ["PYTEST_CURRENT_TEST"] = current
    sys.path[:] = path
    assert signal.getsignal(signal.SIGINT) is handler, "the test left a handler of SIGINT behind"
