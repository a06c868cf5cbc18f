"""Exact match of a name or a word; it is defined in `sirius_dspy.demo.exact_word`, for the wheel."""

from sirius_dspy.demo.exact_word import exact_word

__all__ = ["exact_word"]
