"""A program as an object: its predictors by name, what identifies it, whether it can be run, and a copy of it."""

from sirius_dspy.program.copies import copy_program
from sirius_dspy.program.predictors import is_awaited, is_called, lms_of, predictor_names, set_lms
from sirius_dspy.program.signatures import (
    program_fingerprint,
    restore_values,
    signature_digest,
    signature_of,
)
from sirius_dspy.program.structure import hidden_predictors

__all__ = [
    "copy_program",
    "hidden_predictors",
    "is_awaited",
    "is_called",
    "lms_of",
    "predictor_names",
    "program_fingerprint",
    "restore_values",
    "set_lms",
    "signature_digest",
    "signature_of",
]
