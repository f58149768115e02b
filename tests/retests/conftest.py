"""For tests that run whole studies: those of the toy project."""

from toy_studies import reported, studies

__all__ = ["reported", "studies"]
