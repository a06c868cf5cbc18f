"""Uncertainty of scores and of their differences: intervals, paired tests, spread over seeds, multiple comparisons."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:  # numpy is imported late, with the first bootstrap
    import numpy as np
    from numpy.typing import NDArray

First = TypeVar("First")
Second = TypeVar("Second")

_BATCH = 500
"""Number of bootstrap resamples at a time, which bounds the memory for many items."""


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Bound the true success rate behind `successes` out of `trials` independent trials.

    Stays inside [0, 1] and is useful for few trials and for rates near 0 or 1, where the textbook
    interval (rate plus or minus 1.96 standard errors) has no width at all.

    Args:
        successes: Number of successes, from 0 to `trials`.
        trials: Number of trials, at least 1.
        confidence: Share of such intervals that contain the true rate; 0.95 by convention.

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
            f"{successes!r} successes of {trials!r} trials is not a share. Pass counts with 0 <= successes <= trials "
            "and at least one trial."
        )
    z = NormalDist().inv_cdf(0.5 + _share(confidence) / 2)
    rate, spread = successes / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    # At 0 and at all successes an end is exactly 0 or 1; rounding must not say otherwise.
    return Interval(
        0.0 if successes == 0 else max(0.0, centre - half),
        1.0 if successes == trials else min(1.0, centre + half),
    )


class Estimate(NamedTuple):
    """A number with its confidence interval, 95 % unless another confidence was requested."""

    value: float
    low: float
    high: float


class Spread(NamedTuple):
    """Mean and standard deviation of scores over seeds."""

    mean: float
    sd: float | None
    """Sample standard deviation, with n - 1 in the denominator; `None` for a single seed."""
    seeds: int


def spread(scores: Sequence[float]) -> Spread:
    """Compute the mean and sample standard deviation over seeds.

    Args:
        scores: One score per seed.

    Raises:
        ValueError: There are no scores.

    Examples:
        >>> result = spread([26 / 107, 28 / 107, 28 / 107])
        >>> round(result.mean, 4), round(result.sd, 4)
        (0.2555, 0.0108)
    """
    if not scores:
        raise ValueError("The spread of 0 scores is undefined. Pass one score per seed.")
    return Spread(fmean(scores), stdev(scores) if len(scores) > 1 else None, len(scores))


class McNemar(NamedTuple):
    """Counts of the items on which two systems differ, and the p-value of the split."""

    gained: int
    """Number of items that were wrong before and are right after."""
    lost: int
    """Number of items that were right before and are wrong after."""
    p_value: float
    """Two-sided and exact; 1 if the systems never differ."""


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """Compare two systems on the same items, using the items that only one of them gets right.

    If neither system is better, each such item is a coin toss. The test is exact, so it holds for any count; six
    differences in the same direction are the fewest that give p < 0.05. Items must be independent: use
    `paired_bootstrap` for grouped items.

    Args:
        before: Whether system A is right, one value per item.
        after: System B on the same items, in the same order.

    Raises:
        ValueError: The lengths differ.

    References:
        McNemar (1947), Note on the sampling error of the difference between correlated proportions, Psychometrika 12;
        the exact form is the binomial test on the discordant pairs.

    Examples:
        >>> mcnemar([False] * 6, [True] * 6).p_value
        0.03125
    """
    pairs = list(_pair(before, after))
    gained = sum(new and not old for old, new in pairs)
    lost = sum(old and not new for old, new in pairs)
    differing, rarer = gained + lost, min(gained, lost)
    tail = sum(math.comb(differing, count) for count in range(rarer + 1))
    return McNemar(gained, lost, min(1.0, 2 * tail / 2**differing))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values for the number of comparisons, so that the chance of any false claim stays at the chosen level.

    Args:
        p_values: Name of each comparison to its p-value.

    Returns:
        Name of each comparison to its adjusted p-value, in the given order; claim a difference where it is below, say,
            0.05.

    Raises:
        ValueError: A p-value is not between 0 and 1.

    References:
        Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.

    Examples:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    if bad := {name: p for name, p in p_values.items() if not 0 <= p <= 1}:
        raise ValueError(f"{bad!r} are not p-values. Pass numbers from 0 to 1.")
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def bootstrap(
    scores: Sequence[Sequence[float]],
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Compute the mean score with a percentile bootstrap interval over items, groups of items, and seeds.

    Each resample draws seeds with replacement, then groups with replacement, the same groups for all seeds because
    the seeds share their items. So the interval covers the choice of items and the choice of seeds. With one seed it
    does not cover the variation between seeds; with a handful it underestimates it.

    Args:
        scores: `(seeds, items)`, any range, one row per seed; a single row if there are no seeds.
        groups: `(items,)`; items of the same group are drawn together, e.g. questions about one text. By default each
            item is its own group.
        resamples: Number of resamples. With 10,000, the ends of the interval vary by about half a percent of its width.
        confidence: Share of such intervals that contain the true value; 0.95 by convention.
        seed: Seed of the resampling; equal arguments give equal intervals.

    Raises:
        ValueError: There are no scores, or the lengths differ.

    References:
        Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13 (percentile interval).

    Examples:
        >>> estimate = bootstrap([[0, 1, 1, 0, 1, 1, 1, 0]])
        >>> estimate.value, estimate.low, estimate.high
        (0.625, 0.25, 0.875)
    """
    import numpy as np

    sums, sizes = _by_group(scores, groups)
    num_seeds, num_groups = sums.shape
    random, means = np.random.default_rng(seed), []
    for batch in range(0, resamples, _BATCH):
        shape = min(_BATCH, resamples - batch)
        drawn_groups = random.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=shape)
        drawn_seeds = random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=shape)
        totals = np.einsum("bg,sg,bs->b", drawn_groups, sums, drawn_seeds, optimize=True)
        means.append(totals / (drawn_groups @ sizes) / num_seeds)
    tail = (1 - _share(confidence)) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Estimate(float(sums.sum() / sizes.sum() / num_seeds), float(low), float(high))


def paired_bootstrap(
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Compute the difference of two mean scores on the same items, `after - before`, with its bootstrap interval.

    Args:
        before: Scores of system A, `(seeds, items)`; see `bootstrap`.
        after: Scores of system B on the same items in the same order, with as many seeds; row s of both is one pair.
        groups: See `bootstrap`.
        resamples: See `bootstrap`.
        confidence: Share of such intervals that contain the true value; 0.95 by convention.
        seed: See `bootstrap`.

    Raises:
        ValueError: The shapes differ, or there are no scores.

    Examples:
        >>> paired_bootstrap([[0, 0, 1, 1]], [[1, 1, 1, 1]]).value
        0.5
    """
    differences = [[b - a for a, b in _pair(old, new)] for old, new in _pair(before, after)]
    return bootstrap(differences, groups=groups, resamples=resamples, confidence=confidence, seed=seed)


def _by_group(
    scores: Sequence[Sequence[float]], groups: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum of each group's scores, `(seeds, groups)`, and its number of items, `(groups,)`."""
    import numpy as np

    lengths = {len(row) for row in scores}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"The rows have {sorted(lengths)} scores. Pass one row per seed, with a score for each item.")
    names = list(range(lengths.pop())) if groups is None else list(groups)
    table = np.array([[float(score) for score in row] for row in scores])
    if len(names) != table.shape[1]:
        raise ValueError(f"There are {len(names)} groups for {table.shape[1]} items. Pass one group per item.")
    numbers: dict[Hashable, int] = {}
    member = np.array([numbers.setdefault(name, len(numbers)) for name in names])
    sums = np.stack([np.bincount(member, weights=row, minlength=len(numbers)) for row in table])
    return sums.astype(np.float64), np.bincount(member, minlength=len(numbers)).astype(np.float64)


def _share(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` is {confidence!r}. Pass a share between 0 and 1, e.g. 0.95.")
    return confidence


def _pair(first: Sequence[First], second: Sequence[Second]) -> Iterator[tuple[First, Second]]:
    if len(first) != len(second):
        raise ValueError(
            f"There are {len(first)} and {len(second)} values. Pass both for the same items in the same order."
        )
    return zip(first, second, strict=True)
