"""Numbers as texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sirius_dspy.stats import Interval

NONE = "-"
"""Shown where nothing was measured."""

UNKNOWN = "unknown"
"""Shown for the price of an LM that no table lists."""


def format_score(score: float, *, in_percent: bool) -> str:
    """A score for a table: all have the same number of decimals."""
    return f"{100 * score:.1f} %" if in_percent else f"{score:.4f}"


def format_score_briefly(score: float, *, in_percent: bool) -> str:
    """A score for a sentence: three digits at most, and no zeros after them."""
    return f"{100 * score:.3g} %" if in_percent else f"{score:.3g}"


def format_interval(interval: Interval | None, *, in_percent: bool) -> str:
    """The two bounds of an interval."""
    if interval is None:
        return NONE
    if in_percent:
        return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"
    return f"{interval.low:.4f} to {interval.high:.4f}"


def format_share(part: int, whole: int) -> str:
    """A part of a whole in per cent."""
    return f"{100 * part / whole:.1f} %" if whole else NONE


def format_count(count: int | None) -> str:
    """A whole number with separators."""
    return NONE if count is None else f"{count:,}"


def format_counts(counts: Mapping[str, int]) -> str:
    """Name and number of all that are not zero."""
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or NONE


def format_usd(usd: float | None) -> str:
    """US dollars; four decimals for small amounts."""
    if usd is None:
        return UNKNOWN
    return f"{usd:,.2f}" if usd >= 1 or usd == 0 else f"{usd:.4f}"


def format_seconds(seconds: float | None) -> str:
    """Seconds for a table."""
    return NONE if seconds is None else f"{seconds:,.1f}"


def format_duration(seconds: float) -> str:
    """Seconds, minutes and seconds, or hours and minutes."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_losses(losses: Sequence[float | None]) -> str:
    """The first and the last loss."""
    if not losses:
        return NONE
    return " to ".join(NONE if loss is None else f"{loss:.3f}" for loss in (losses[0], losses[-1]))


def format_flag(value: bool | None) -> str:
    """Yes or no."""
    return NONE if value is None else "yes" if value else "no"
