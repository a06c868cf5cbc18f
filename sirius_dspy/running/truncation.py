"""DSPy's warnings of replies that were cut off at their token limit, which are counted here instead."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sirius_dspy.dspy_internals import TRUNCATION_LOGGER, TRUNCATION_WARNING

_counts_itself: contextvars.ContextVar[bool] = contextvars.ContextVar("sirius_dspy_counts_cut_replies", default=False)
"""Whether the caller counts cut replies, or is a thread of one who does; others in this process keep the warnings."""


@contextmanager
def drop_truncation_warnings() -> Iterator[None]:
    """The context in which DSPy does not warn of each reply that was cut off."""
    dspy_logger = logging.getLogger(TRUNCATION_LOGGER)
    token = _counts_itself.set(True)
    dspy_logger.addFilter(_is_wanted)  # the same function twice is one filter, so that compiles may overlap
    try:
        yield
    finally:
        _counts_itself.reset(token)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not (_counts_itself.get() and TRUNCATION_WARNING in record.getMessage())
