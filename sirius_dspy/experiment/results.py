"""What an experiment found: every number of its tables, computed from the outcomes of its cells alone."""

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


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline, on the seeds that both have, item by item."""

    seeds: tuple[int, ...]
    gained: int
    """Questions that the method gets right more often, over these seeds, than the baseline."""
    lost: int
    """And less often."""
    p_value: float
    """Exact McNemar test; with several seeds, or questions that belong together, the exact sign test over questions,
    of which it is the case of one seed: the answers of all seeds to one question are not independent."""
    p_holm: float
    """Adjusted for the number of methods compared."""
    difference: Estimate
    """Of the accuracies, with a paired bootstrap interval over questions and seeds."""


@dataclass(frozen=True)
class Row:
    """One method, over its seeds."""

    method: str
    cells: tuple[Cell, ...]
    """With failed ones."""
    comparison: Comparison | None = None
    """`None` for the baseline itself, and where the two have no seed in common."""

    @property
    def measured(self) -> tuple[Cell, ...]:
        """Cells that have outcomes."""
        return tuple(cell for cell in self.cells if cell.outcomes)

    @property
    def n(self) -> int:
        """Test answers, over all seeds."""
        return sum(len(cell.outcomes) for cell in self.measured)

    @property
    def num_right(self) -> int:
        """Right ones."""
        return sum(cell.num_right for cell in self.measured)

    @property
    def num_unparsed(self) -> int:
        """Runs without an answer that can be read; they count as wrong."""
        return sum(cell.num_unparsed for cell in self.measured)

    @cached_property
    def accuracy(self) -> Estimate | None:
        """Share of right answers with its 95 % interval; `None` if nothing was measured.

        Wilson's interval for one seed of independent questions, else a bootstrap over seeds and groups of questions.
        Where all answers are right, or none, a bootstrap knows no doubt: then Wilson's for the groups of one seed.
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
        """Means over seeds of what the recipe asks for beside the accuracy."""
        names = [name for cell in self.measured[:1] for name in cell.measures]
        return {name: fmean(cell.measures[name] for cell in self.measured) for name in names}

    def mean(self, stage: str, count: str) -> float | None:
        """Mean over seeds of a count of `Spent`, in `trained` or `tested`; failed cells have no say in it."""
        return fmean(getattr(getattr(cell, stage), count) for cell in self.measured) if self.measured else None


@dataclass(frozen=True)
class Results:
    """Everything that an experiment found.

    Attributes:
        name: Of the experiment.
        recipe: With the methods and seeds that were run.
        lm: Id of the agents' LM.
        cells: In the order of the work.
        majority: Score of a constant answer on the test split; `None` if the task cannot say.
        command: What the user typed.
        limit: Examples of each split at most.
        is_own_lm: Whether the LM is the recipe's, so that its prices hold.
        crossplay: Tables of games in which the methods meet, one per seed.
        written_at: UTC.
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
        """One per method, in the order of the work."""
        by_method: dict[str, list[Cell]] = {}
        for cell in self.cells:
            by_method.setdefault(cell.method, []).append(cell)
        comparisons = _compare(by_method, self.recipe.baseline)
        return tuple(Row(name, tuple(cells), comparisons.get(name)) for name, cells in by_method.items())

    @property
    def failed(self) -> tuple[Cell, ...]:
        """Cells without a result."""
        return tuple(cell for cell in self.cells if cell.status == "failed")

    @property
    def num_test(self) -> int:
        """Questions of the test split; 0 if nothing was measured."""
        return max((len(cell.outcomes) for cell in self.cells), default=0)

    def cost(self, cell: Cell) -> float | None:
        """US dollars for all LM calls of a cell, fine-tuning jobs left out; `None` is unknown, which is not free."""
        price = self.recipe.price
        if price is None or not self.is_own_lm:
            return (cell.trained + cell.tested).usd
        stages = (cell.trained, cell.tested)
        prompt, completion = (sum(getattr(s, name) for s in stages) for name in ("prompt_tokens", "completion_tokens"))
        return (prompt * price.prompt + completion * price.completion) / 1e6

    def mean_cost(self, row: Row) -> float | None:
        """US dollars for a method, mean over seeds; `None` if a cost is unknown, or nothing was measured."""
        costs = [self.cost(cell) for cell in row.measured]
        prices = [cost for cost in costs if cost is not None]
        return fmean(prices) if costs and len(prices) == len(costs) else None

    def to_dict(self) -> dict[str, Any]:
        """Every number as JSON, with the outcomes of each cell."""
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
        """A method as plain values."""
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
    """Of what the numbers depend on."""
    by_package = {"python": platform.python_version()}
    for package in ("sirius-dspy", "dspy", "transformers", "openvino-genai"):
        try:
            by_package[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # the local extra is not there, or the package runs from its folder
    return by_package


def _compare(by_method: Mapping[str, Sequence[Cell]], baseline: str) -> dict[str, Comparison]:
    """Every other method against the baseline, with p-values adjusted for their number."""
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
    """The exact sign test over groups of questions; with one seed and no groups, McNemar's."""
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
