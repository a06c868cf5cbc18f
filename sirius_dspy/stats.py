"""How sure a measured share is."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Bound the true success rate behind `successes` out of `trials` independent tries.

    Stays inside [0, 1] and is useful for few trials and for rates near 0 or 1, where the textbook
    interval (rate plus or minus 1.96 standard errors) has no width at all.

    Args:
        successes: Count, between 0 and `trials`.
        trials: Count, at least 1.
        confidence: Share of such intervals that hold the true rate; 0.95 by convention.

    Raises:
        ValueError: The counts or the confidence are out of range.

    References:
        Wilson (1927), Probable inference, the law of succession, and statistical inference,
        Journal of the American Statistical Association 22.

    Examples:
        >>> low, high = wilson_interval(5, 10)
        >>> round(low, 4), round(high, 4)
        (0.2366, 0.7634)
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(
            f"{successes!r} successes of {trials!r} trials is no share. Pass counts with 0 <= successes <= trials "
            "and at least one trial."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` is {confidence!r}. Pass a share between 0 and 1, e.g. 0.95.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, spread = successes / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    # At 0 and at all successes an end is exactly 0 or 1; rounding must not say otherwise.
    return Interval(
        0.0 if successes == 0 else max(0.0, centre - half),
        1.0 if successes == trials else min(1.0, centre + half),
    )
