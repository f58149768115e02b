"""The walk along an exception's causes."""

import pytest

from lightning_hp.study.causes import causes


def test_causes_come_in_their_order():
    first, second, third = OSError("first"), ValueError("second"), RuntimeError("third")
    third.__cause__, second.__context__ = second, first
    assert list(causes(third)) == [third, second, first]
    assert list(causes(first)) == [first]
    assert list(causes(None)) == []


def test_a_cause_is_told_before_what_was_handled():
    error, cause, handled = RuntimeError(), ValueError(), KeyError()
    error.__cause__, error.__context__ = cause, handled
    assert list(causes(error)) == [error, cause]


def raised_again(own, wrapped):
    try:
        raise wrapped
    except ValueError:
        raise own from None


@pytest.mark.timeout(10)
def test_an_exception_that_stands_in_its_own_chain_is_told_once():
    own, wrapped = ImportError("own"), ValueError("wrapped")
    wrapped.__cause__ = own
    with pytest.raises(ImportError, match="own") as caught:
        raised_again(own, wrapped)
    assert caught.value.__context__ is wrapped, "else the chain has no circle"
    assert list(causes(caught.value)) == [own, wrapped]
