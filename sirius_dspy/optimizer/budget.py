"""A budget for a compile, and the account of what was spent.

What counts is what servers counted: DSPy reports the usage of each answer that no cache gave, whoever asked, so the
calls of a metric's judge and those that were repeated count as well.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import SettingsError
from sirius_dspy.optimizer.prices import price_of
from sirius_dspy.optimizer.spent import Ledger, Spent, add_to, cost_of, usage_of
from sirius_dspy.trajectory import Usage

logger = logging.getLogger(__name__)

STAGES = ("evaluate", "collect", "credit", "repair", "curate", "train")
"""The stages of an iteration, by the names that results and trackers use."""

PARTIAL = ("collect", "credit", "repair")
"""Stages that are worth something when they end early, so that a compile goes on without the rest of them."""

WARN_AT = (0.5, 0.8)
"""Shares of a budget at which a warning is logged."""


@dataclass(frozen=True)
class Budget:
    """Limits of a compile; `None` is no limit.

    At a limit the compile ends cleanly: runs in flight are awaited and kept, and the best program so far is returned.
    Its `detailed_results.ended` says so. The same call with a larger budget goes on from there. No run is begun that
    would exceed a limit if it took as much as the largest of its stage so far; so a compile ends a little below its
    limits rather than above them. The first run of a stage is made alone, to show what one takes.

    Attributes:
        calls: LM calls that a server answered; answers from a cache are free.
        tokens: Prompt and completion tokens of these calls.
        usd: US dollars for these tokens and for fine-tuning jobs. All LMs need a known price, and so does fine-tuning
            them, or the compile is refused at once; it ends where an LM without one answers the metric. No job begins
            that would exceed the limit, by an estimate from its rows; once it has ended, it counts as what the server
            charges for.
        seconds: Wall time of the compile, those of an interrupted one included. A fine-tuning job is not interrupted.
        stages: Limits of single stages in each iteration, `collect`, `credit` or `repair`. Such a stage ends early, and
            the compile goes on with what there is. Not for LMs that are interrupted in other stages: an evaluation on
            half a valset decides nothing.
        prices: LM id, or the beginning of one, to US dollars per million prompt and completion tokens, e.g.
            `{"openai/my-deployment": (0.15, 0.60)}`; by default DSPy's table.

    Examples:
        >>> Budget(calls=10_000, stages={"repair": Budget(calls=500)}).calls
        10000
    """

    calls: int | None = None
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None
    stages: Mapping[str, Budget] = field(default_factory=dict)
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name, those of single stages left out."""
        return {name: value for name in _LIMITS if (value := getattr(self, name)) is not None}

    def check(self) -> None:
        """Refuse limits of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
        """
        checks.check("Budget", vars(self), _KINDS)
        if unknown := sorted(set(self.stages) - set(PARTIAL)):
            raise SettingsError(
                f"`stages` of Budget names {unknown}; only {list(PARTIAL)} are worth something when they end early. "
                "Set a limit for the whole compile instead."
            )
        for name, part in self.stages.items():
            part.check()
            if part.stages or part.prices:
                raise SettingsError(f"`stages` of Budget has `stages` or `prices` for {name!r}; it takes limits only.")

    def check_prices(self, models: Collection[str]) -> None:
        """Refuse a limit in dollars where an LM has no known price.

        Args:
            models: Ids of the LMs of the compile.

        Raises:
            SettingsError: The message names the LMs.
        """
        limited = self.usd is not None or any(part.usd is not None for part in self.stages.values())
        unknown = sorted({model for model in models if price_of(model, self.prices) is None})
        if limited and unknown:
            raise SettingsError(
                f"`usd` of Budget is set, but nobody knows the price of {unknown}. Give it in US dollars per million "
                f"prompt and completion tokens, `Budget(usd=..., prices={{{unknown[0]!r}: (0.15, 0.60)}})`, or set "
                "`calls` or `tokens` instead."
            )

    def check_training_prices(self, models: Collection[str]) -> None:
        """Refuse a limit in dollars where fine-tuning has no known price.

        Args:
            models: Ids of the LMs whose fine-tuning has none.

        Raises:
            SettingsError: The message names them.
        """
        if self.usd is not None and models:
            unknown = sorted(models)
            raise SettingsError(
                f"`usd` of Budget is set, but nobody knows the price of fine-tuning {unknown}. Give it in US dollars "
                f"per million trained tokens, `SiriuS(trainer=HostedTrainer(prices={{{unknown[0]!r}: 1.5}}))`, or 0 if "
                "it is free; or set `calls` or `tokens` instead."
            )


def _is_price(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(checks.number(0).fits(part) for part in value)


_KINDS = {
    "calls": checks.optional(checks.whole(1)),
    "tokens": checks.optional(checks.whole(1)),
    "usd": checks.optional(checks.number(above=0)),
    "seconds": checks.optional(checks.number(above=0)),
    "stages": checks.table(
        "stages with budgets, such as `{'repair': Budget(calls=500)}`", checks.instance(Budget).fits
    ),
    "prices": checks.table("LM ids with two prices, such as `{'openai/x': (0.15, 0.60)}`", _is_price),
}


class BudgetReached(Exception):  # noqa: N818  # ends a compile as intended
    """The compile must end here; caught by the loop."""


class Account:
    """Counts what a compile spends, stage by stage, and says how much more may begin.

    It stands in for DSPy's usage tracker, and passes on what it hears to the one that was there before.

    Args:
        budget: `None` is no limit.
        ledger: What an interrupted compile had spent.
        seconds: How long it had worked in each stage, by the keys of the ledger.
        jobs: US dollars of its fine-tuning jobs, by the same keys and the agent.
        bases: Id of each LM that came out of them to that of the LM it started from, which has the same price where its
            own is unknown.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        ledger: Ledger | None = None,
        seconds: Mapping[str, float] | None = None,
        jobs: Mapping[str, Mapping[str, float]] | None = None,
        bases: Mapping[str, str] | None = None,
    ) -> None:
        self._lock = threading.Lock()  # protects ledger and jobs: LMs are asked from many threads, which also report
        self.budget = budget or Budget()
        self.ledger: Ledger = {key: dict(by_model) for key, by_model in (ledger or {}).items()}
        self.seconds: dict[str, float] = dict(seconds or {})
        self.jobs: dict[str, dict[str, float]] = {key: dict(by_agent) for key, by_agent in (jobs or {}).items()}
        self.bases = dict(bases or {})
        self._parent: Any = None
        self._key = "0/evaluate"
        self._began: float | None = None
        self._items = 0
        self._largest: dict[str, float] = {}
        self._at_start = self.spent(self._key)
        self._warned = 0.0
        self._idle = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # DSPy copies its usage tracker into each of its own threads

    def add_usage(self, lm: str, entry: Mapping[str, Any]) -> None:
        """Called by DSPy for each answer that no cache gave."""
        usage = usage_of(entry)
        with self._lock:
            add_to(self.ledger, self._key, lm, usage)
        if self._parent is not None:
            self._parent.add_usage(lm, entry)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The context in which LM calls are counted."""
        self._parent = dspy.settings.get("usage_tracker")
        with dspy.context(usage_tracker=self):
            yield

    @contextmanager
    def stage(self, iteration: int, name: str) -> Iterator[None]:
        """Count what is spent inside for a stage.

        Raises:
            BudgetReached: Nothing may begin any more.
        """
        self.check()
        before, outer, began = self._key, self._began, self._clock()
        self._key, self._items, self._largest, self._began = f"{iteration}/{name}", 0, {}, began
        self._at_start = self.spent(self._key)
        try:
            yield
        finally:
            key, self._key, self._began = self._key, before, outer
            self.seconds[key] = self.seconds.get(key, 0.0) + self._clock() - began

    def idle(self, seconds: float) -> None:
        """Do not count some seconds that have passed: the compile was paused."""
        self._idle += seconds

    def _clock(self) -> float:
        return time.monotonic() - self._idle

    def spent(self, key: str | None = None) -> Spent:
        """What was spent in a stage of an iteration, by its key, or in all."""
        with self._lock:
            ledgers = [dict(by_model) for name, by_model in self.ledger.items() if key in (None, name)]
            jobs = [usd for name, by_agent in self.jobs.items() if key in (None, name) for usd in by_agent.values()]
        usages = [(self._priced_id(model), usage) for by_model in ledgers for model, usage in by_model.items()]
        total = sum((usage for _, usage in usages), Usage())
        usd = cost_of(usages, self.budget.prices)
        seconds = sum(value for name, value in self.seconds.items() if key in (None, name))
        if self._began is not None and key in (None, self._key):
            seconds += self._clock() - self._began
        return Spent(
            calls=total.calls,
            prompt_tokens=total.prompt_tokens,
            completion_tokens=total.completion_tokens,
            usd=None if usd is None else usd + sum(jobs),
            seconds=seconds,
        )

    def _priced_id(self, model: str) -> str:
        for _ in range(len(self.bases)):
            if model not in self.bases or price_of(model, self.budget.prices) is not None:
                break
            model = self.bases[model]
        return model

    def _unpriced(self) -> list[str]:
        with self._lock:
            asked = {model for by_model in self.ledger.values() for model, usage in by_model.items() if usage.calls}
        return sorted(model for model in asked if price_of(self._priced_id(model), self.budget.prices) is None)

    def note_job(self, iteration: int, agent: str, usd: float) -> None:
        """A fine-tuning job costs this much: by an estimate when it begins, and as the server counts at its end."""
        key = job_key(iteration)
        with self._lock:
            if usd or agent in self.jobs.get(key, {}):  # jobs that are free are not listed
                self.jobs.setdefault(key, {})[agent] = usd
        self._warn()

    def end_before_jobs(self, usd: float) -> None:
        """End the compile if fine-tuning jobs that have not begun do not fit.

        Args:
            usd: What they cost together, by an estimate.

        Raises:
            BudgetReached: They would reach the limit of the whole compile.
        """
        limit, spent = self.budget.usd, self.spent().usd or 0.0
        if limit is not None and usd and spent + usd >= limit:
            raise BudgetReached(
                f"fine-tuning would cost about {usd:.2g} US dollars, and {limit - spent:.2g} of {limit:g} are left"
            )

    def note_item(self, usage: Usage) -> None:
        """One run or repair of the stage ended, and its LM calls took this."""
        self._items += 1
        spent = {"calls": usage.calls, "tokens": usage.prompt_tokens + usage.completion_tokens}
        self._largest = {name: max(value, self._largest.get(name, 0.0)) for name, value in spent.items()}
        self._warn()

    def allowance(self, first_calls: int) -> Callable[[], int]:
        """Say how many more runs or repairs of this stage may be under way at a time.

        Args:
            first_calls: LM calls that one is expected to make, while none has ended yet.
        """

        def allowed() -> int:
            limits = ((self.budget, None), (self.budget.stages.get(self._key.partition("/")[2], Budget()), self._key))
            # Asked after every run: without a limit, nothing is added up, and no price is looked up.
            rooms = [self._room(limit, self.spent(key), first_calls) for limit, key in limits if limit.limits]
            return min(rooms, default=_NO_LIMIT)

        return allowed

    def end_if_full(self, first_calls: int) -> None:
        """End the compile if not even one more run or repair fits.

        Args:
            first_calls: As for `allowance`.

        Raises:
            BudgetReached: None fits into the limits of the whole compile.
        """
        self.check()
        if self.budget.limits and self._room(self.budget, self.spent(), first_calls) < 1:
            raise BudgetReached("what is left is too little for another run")

    def check(self) -> None:
        """End the compile if nothing is left.

        Raises:
            BudgetReached: A limit of the whole compile is reached.
        """
        self._warn()
        if self.budget.limits and (reached := self._reached(self.budget, self.spent())):
            raise BudgetReached(reached)

    def _room(self, limit: Budget, spent: Spent, first_calls: int) -> int:
        """How many more items fit if each takes as much as the largest before it, or as the mean if that is more."""
        if self._reached(limit, spent):
            return 0
        lefts = _left(limit, spent)
        if not self._items:  # nobody knows yet what one takes, so that one alone has to show it
            return int(lefts.get("calls", first_calls) >= first_calls)
        stage, rooms = self.spent(self._key), [_NO_LIMIT]
        for name, left in lefts.items():
            mean = (_amount(stage, name) - _amount(self._at_start, name)) / self._items
            each = max(mean, self._largest.get(name, 0.0))
            if name != "seconds" and each > 0:
                rooms.append(int(left / each))
        return min(rooms)

    def _reached(self, limit: Budget, spent: Spent) -> str:
        if limit.usd is not None and spent.usd is None:  # of a judge, say, which nobody knew before it was asked
            return f"nobody knows the price of {self._unpriced()}, which `prices` of Budget can give"
        for name, left in _left(limit, spent).items():
            if left <= 0:
                return f"{getattr(limit, name):g} {'US dollars' if name == 'usd' else name}"
        return ""

    def _warn(self) -> None:
        """Log once at each share of the budget."""
        if not self.budget.limits:
            return
        spent = self.spent()
        shares = {name: _amount(spent, name) / limit for name, limit in self.budget.limits.items()}
        name = max(shares, key=lambda name: shares[name])
        passed = [share for share in WARN_AT if self._warned < share <= shares[name]]
        if passed:
            self._warned = passed[-1]
            logger.warning(
                "The compile has used %.0f %% of its budget of %g %s.",
                100 * shares[name],
                getattr(self.budget, name),
                "US dollars" if name == "usd" else name,
            )


def job_key(iteration: int) -> str:
    """The key under which the fine-tuning jobs of an iteration count, those of the critic among them."""
    return f"{iteration}/train"


_LIMITS = ("calls", "tokens", "usd", "seconds")
_NO_LIMIT = 1 << 30


def _amount(spent: Spent, name: str) -> float:
    return float(getattr(spent, name) or 0.0)


def _left(limit: Budget, spent: Spent) -> dict[str, float]:
    """Limit to what is left of it."""
    return {name: value - _amount(spent, name) for name, value in limit.limits.items()}
