"""The error of experiments."""

from __future__ import annotations

from sirius_dspy.errors import SiriuSError


class ExperimentError(SiriuSError, ValueError):
    """A recipe cannot be run as requested: an unknown task, method or setting, or data that does not fit."""
