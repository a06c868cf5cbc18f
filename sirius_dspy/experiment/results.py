"""Results of an experiment: all numbers of its tables, computed from the outcomes of its cells."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from statistics import fmean
from typing import Any

from sirius_dspy.experiment.cell import Cell
from sirius_dspy.experiment.recipe import Recipe
from sirius_dspy.stats import Estimate, Spread, bootstrap, holm, mcnemar, paired_bootstrap, spread, wilson_interval

TRIVIAL = "best trivial rule"
"""What tables and plots call `Results.majority`."""


@dataclass(frozen=True)
class Comparison:
    """Compares a method with the baseline item by item, on the seeds that both have."""

    seeds: tuple[int, ...]
    gained: int
    """Number of questions that the method answers right more often than the baseline over these seeds."""
    lost: int
    """Number of questions that the method answers right less often."""
    p_value: float
    """P-value of the exact McNemar test. With several seeds or grouped questions, the answers to one question are not
    independent, so it is the exact sign test over questions, which generalizes McNemar's test."""
    p_holm: float
    """P-value adjusted for the number of compared methods."""
    difference: Estimate
    """Difference of the accuracies, with a paired bootstrap interval over questions and seeds."""


@dataclass(frozen=True)
class Row:
    """The results of one method over its seeds."""

    method: str
    cells: tuple[Cell, ...]
    """All cells, including failed ones."""
    comparison: Comparison | None = None
    """`None` for the baseline itself, and if the two have no seed in common."""

    @property
    def measured(self) -> tuple[Cell, ...]:
        """The cells with outcomes."""
        return tuple(cell for cell in self.cells if cell.outcomes)

    @property
    def n(self) -> int:
        """Number of test answers over all seeds."""
        return sum(len(cell.outcomes) for cell in self.measured)

    @property
    def num_right(self) -> int:
        """Number of right answers."""
        return sum(cell.num_right for cell in self.measured)

    @property
    def num_unparsed(self) -> int:
        """Number of answers that cannot be parsed; they count as wrong."""
        return sum(cell.num_unparsed for cell in self.measured)

    @cached_property
    def accuracy(self) -> Estimate | None:
        """Share of right answers with its 95 % interval; `None` if nothing was measured.

        The interval is Wilson's for one seed of independent questions, otherwise a bootstrap over seeds and groups of
        questions. If all answers are right, or none, the bootstrap interval would have no width, so it is Wilson's for
        the groups of one seed.
        """
        if not self.measured:
            return None
        groups = _groups(self.measured[0])
        if len(self.measured) == 1 and len(set(groups)) == len(groups):
            return Estimate(self.num_right / self.n, *wilson_interval(self.num_right, self.n))
        if self.num_right in (0, self.n):
            independent = len(set(groups))
            return Estimate(self.num_right / self.n, *wilson_interval(independent * bool(self.num_right), independent))
        return bootstrap([_right(cell) for cell in self.measured], groups=groups)

    @property
    def spread(self) -> Spread | None:
        """Mean and sample standard deviation over seeds."""
        return spread([cell.accuracy for cell in self.measured]) if self.measured else None

    @property
    def measures(self) -> dict[str, float]:
        """Means over seeds of the further measurements that the recipe requests."""
        names = [name for cell in self.measured[:1] for name in cell.measures]
        return {name: fmean(cell.measures[name] for cell in self.measured) for name in names}

    def mean(self, stage: str, count: str) -> float | None:
        """Return the mean over seeds of a count in `trained` or `tested`, without failed cells."""
        return fmean(getattr(getattr(cell, stage), count) for cell in self.measured) if self.measured else None


@dataclass(frozen=True)
class Results:
    """All results of an experiment.

    Attributes:
        name: Name of the experiment.
        recipe: Recipe with the methods and seeds that were run.
        lm: Id of the agents' LM.
        cells: Cells in the order of the work.
        majority: Score of the best trivial rule on the test split; `None` if the task cannot say.
        command: Command line of the user.
        limit: Maximum number of examples of each split.
        is_own_lm: Whether the LM is the recipe's, so that its prices apply.
        crossplay: Tables of games between the methods, one per seed.
        written_at: Time of writing in UTC.
    """

    name: str
    recipe: Recipe
    lm: str
    cells: tuple[Cell, ...]
    majority: float | None = None
    command: str = ""
    limit: int | None = None
    is_own_lm: bool = True
    crossplay: tuple[Mapping[str, Any], ...] = ()
    written_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """One row per method, in the order of the work."""
        by_method: dict[str, list[Cell]] = {}
        for cell in self.cells:
            by_method.setdefault(cell.method, []).append(cell)
        comparisons = _compare(by_method, self.recipe.baseline)
        return tuple(Row(name, tuple(cells), comparisons.get(name)) for name, cells in by_method.items())

    @property
    def failed(self) -> tuple[Cell, ...]:
        """The cells without a result."""
        return tuple(cell for cell in self.cells if cell.status == "failed")

    @property
    def num_test(self) -> int:
        """Number of questions in the test split; 0 if nothing was measured."""
        return max((len(cell.outcomes) for cell in self.cells), default=0)

    def cost(self, cell: Cell) -> float | None:
        """Return the US dollars for all LM calls of a cell, without fine-tuning jobs; `None` if unknown."""
        price = self.recipe.price
        if price is None or not self.is_own_lm:
            return (cell.trained + cell.tested).usd
        stages = (cell.trained, cell.tested)
        prompt, completion = (sum(getattr(s, name) for s in stages) for name in ("prompt_tokens", "completion_tokens"))
        return (prompt * price.prompt + completion * price.completion) / 1e6

    def mean_cost(self, row: Row) -> float | None:
        """Return the US dollars for a method, as a mean over seeds; `None` if unknown."""
        costs = [self.cost(cell) for cell in row.measured]
        prices = [cost for cost in costs if cost is not None]
        return fmean(prices) if costs and len(prices) == len(costs) else None

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON, with the outcomes of each cell."""
        return {
            "name": self.name,
            "title": self.recipe.title,
            "command": self.command,
            "written_at": self.written_at,
            "versions": versions(),
            "lm": self.lm,
            "limit": self.limit,
            "seeds": list(self.recipe.seeds),
            "baseline": self.recipe.baseline,
            "num_test": self.num_test,
            "majority": self.majority,
            "methods": [self._row(row) for row in self.rows],
            "cells": [{**cell.to_plain(), "cost_usd": self.cost(cell)} for cell in self.cells],
            "crossplay": [dict(played) for played in self.crossplay],
            "paper": [asdict(table) for table in self.recipe.paper],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        """Return the results of a method as plain values."""
        accuracy = row.accuracy
        return {
            "method": row.method,
            "status": {str(cell.seed): cell.status for cell in row.cells},
            "n": row.n,
            "right": row.num_right,
            "unparsed": row.num_unparsed,
            "accuracy": accuracy and accuracy.value,
            "interval": accuracy and [accuracy.low, accuracy.high],
            "spread": row.spread and row.spread._asdict(),
            "wilson": {
                str(cell.seed): list(wilson_interval(cell.num_right, len(cell.outcomes))) for cell in row.measured
            },
            "measures": row.measures,
            "comparison": row.comparison and _plain(row.comparison),
            "trained": {name: row.mean("trained", name) for name in _COUNTS},
            "tested": {name: row.mean("tested", name) for name in _COUNTS},
            "cost_usd": self.mean_cost(row),
        }


_COUNTS = ("calls", "cached_calls", "prompt_tokens", "completion_tokens", "seconds")


def versions() -> dict[str, str]:
    """Return the versions of the packages on which the numbers depend."""
    by_package = {"python": platform.python_version()}
    for package in ("sirius-dspy", "dspy", "transformers", "openvino-genai"):
        try:
            by_package[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # the local extra is not installed, or the package runs from its folder
    return by_package


def _compare(by_method: Mapping[str, Sequence[Cell]], baseline: str) -> dict[str, Comparison]:
    """Compare every other method with the baseline, with p-values adjusted for their number."""
    before = {cell.seed: cell for cell in by_method.get(baseline, ()) if cell.outcomes}
    pairs: dict[str, list[tuple[Cell, Cell]]] = {}
    for name, cells in by_method.items():
        both = [(before[cell.seed], cell) for cell in cells if cell.outcomes and cell.seed in before]
        if name != baseline and both:
            pairs[name] = both
    tests = {name: _signs(both) for name, both in pairs.items()}
    adjusted = holm({name: test.p_value for name, test in tests.items()})
    return {
        name: Comparison(
            tuple(new.seed for _, new in both),
            tests[name].gained,
            tests[name].lost,
            tests[name].p_value,
            adjusted[name],
            _difference(both),
        )
        for name, both in pairs.items()
    }


def _signs(pairs: Sequence[tuple[Cell, Cell]]) -> Any:
    """Run the exact sign test over groups of questions, which is McNemar's for one seed without groups."""
    balance: dict[str, int] = {}
    for old, new in pairs:
        for was, now in zip(old.outcomes, new.outcomes, strict=True):
            balance[was.group] = balance.get(was.group, 0) + now.right - was.right
    return mcnemar([change < 0 for change in balance.values()], [change > 0 for change in balance.values()])


def _difference(pairs: Sequence[tuple[Cell, Cell]]) -> Estimate:
    before, after = [_right(old) for old, _ in pairs], [_right(new) for _, new in pairs]
    return paired_bootstrap(before, after, groups=_groups(pairs[0][0]))


def _right(cell: Cell) -> list[float]:
    return [float(outcome.right) for outcome in cell.outcomes]


def _groups(cell: Cell) -> list[str]:
    return [outcome.group for outcome in cell.outcomes]


def _plain(comparison: Comparison) -> dict[str, Any]:
    return {**asdict(comparison), "seeds": list(comparison.seeds), "difference": comparison.difference._asdict()}
