"""Fixtures of studies to draw."""

from study_fixtures import finished as finished
from study_fixtures import made as made
from study_fixtures import paths as paths
