"""Garbage collection around a study: what is frozen is given back, and garbage of before is collected."""

import gc
import weakref

from lightning_hp.project.quiet import imports_kept, quick_collection


class Knot:
    """It refers to itself, so only a collection ends it."""

    def __init__(self):
        self.me = self


def test_garbage_is_collected_first_and_what_is_frozen_is_given_back():
    assert gc.get_freeze_count() == 0
    knot = weakref.ref(Knot())
    with quick_collection():
        assert knot() is None
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


def test_within_a_command_that_keeps_its_imports_they_stay_kept_until_its_end():
    with imports_kept():
        knot = weakref.ref(Knot())
        for _ in range(2):
            with quick_collection():
                assert knot() is None, "what came after the imports is collected"
            assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
