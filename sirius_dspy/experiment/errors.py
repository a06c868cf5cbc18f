"""The error of experiments."""

from __future__ import annotations

from sirius_dspy.errors import SiriuSError


class ExperimentError(SiriuSError, ValueError):
    """A recipe, or what was asked of it, cannot be run: an unknown task, method or setting, data that does not fit."""
