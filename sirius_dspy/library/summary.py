"""The counts and costs of one iteration, read from the library, so that a resumed compile counts the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.trajectory import Repair, Usage


@dataclass(frozen=True)
class Funnel:
    """How far the repairs of one iteration came."""

    tried: int
    """Number of failed runs with a repair, successful or not."""
    repaired: int
    verdicts: Mapping[str, int]
    """Verdict to its number of attempts."""
    by_agent: Mapping[str, Mapping[str, int]]
    """Agent to its numbers of attempts, `tried` and `repaired`."""
    by_rung: Mapping[str, Mapping[str, int]]
    """Rung of a ladder to its numbers of failed runs, `tried` and `repaired`; empty for other augmenters."""
    reliance: float | None
    """Mean reliance of the repaired texts, in nats per token; `None` where it was not measured."""
    usage: Usage
    """Calls and tokens of the attempts, without the replays."""

    def to_plain(self) -> dict[str, Any]:
        """Return the funnel as JSON."""
        plain = asdict(self)
        return plain | plain.pop("usage")


@dataclass(frozen=True)
class Summary:
    """The counts and costs of one iteration."""

    runs: int
    """Rollouts that ended; validation and repairs do not count."""
    successes: int
    failures: int
    """Rollouts that broke."""
    solved_rate: float
    """Share of the examples that at least one rollout solved."""
    covered_rate: float
    """Share of the examples that a rollout solved or a repair made a success of."""
    size: int
    """Trajectories in the whole library."""
    repair: Funnel
    usage: Usage
    """Calls and tokens of all rollouts, repairs and validations."""

    def metrics(self, agents: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Return the headline numbers, by the names that tracking uses.

        Args:
            agents: Agent to its entry in the results, with `rows` and `losses`.
        """
        metrics = {
            "collect/runs": float(self.runs),
            "collect/success_rate": _share(self.successes, self.runs),
            "collect/solved_rate": self.solved_rate,
            "collect/covered_rate": self.covered_rate,
            "collect/failure_rate": _share(self.failures, self.runs),
            "repair/tried": float(self.repair.tried),
            "repair/repaired": float(self.repair.repaired),
            "repair/rate": _share(self.repair.repaired, self.repair.tried),
            "repair/leaked": float(self.repair.verdicts.get("leaked", 0)),
            "library/size": float(self.size),
        }
        metrics |= {
            f"repair/{rung}_rate": _share(counts["repaired"], counts["tried"])
            for rung, counts in self.repair.by_rung.items()
        }
        if self.repair.reliance is not None:
            metrics["repair/reliance"] = self.repair.reliance
        metrics |= {f"rows/{agent}": float(entry["rows"]) for agent, entry in agents.items()}
        last = {agent: entry["losses"][-1] for agent, entry in agents.items() if entry["losses"]}
        return metrics | {f"loss/{agent}": loss for agent, loss in last.items() if loss is not None}

    def costs(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Return what the iteration consumed, by the names that tracking uses.

        Args:
            seconds: Stage to its duration.
        """
        usage = {f"usage/{name}": float(value) for name, value in asdict(self.usage).items()}
        return usage | {f"seconds/{stage}": value for stage, value in seconds.items()}


def summarize(
    library: ExperienceLibrary, run: str, iteration: int, *, threshold: float, agents: Mapping[str, Sequence[str]]
) -> Summary:
    """Count what an iteration did, and what it cost.

    Args:
        library: Holds the iteration's runs and repairs.
        run: Id of the compile.
        iteration: Number of the iteration, from 1.
        threshold: A run succeeded if it ended with a reward of at least this.
        agents: Agent name to its predictors.
    """
    entries = list(library.entries(run=run, iteration=iteration))
    rollouts = [entry for entry in entries if entry.origin == "rollout"]
    successes = [entry for entry in rollouts if entry.succeeded(threshold)]
    repaired = [entry for entry in entries if entry.origin == "repair" and entry.succeeded(threshold)]
    solved, examples, covered = (
        {entry.example_key for entry in group} for group in (successes, rollouts, [*successes, *repaired])
    )
    funnel = _count_repairs(library.repairs(run=run, iteration=iteration), agents)
    return Summary(
        runs=len(rollouts),
        successes=len(successes),
        failures=sum(entry.failure is not None for entry in rollouts),
        solved_rate=_share(len(solved), len(examples)),
        covered_rate=_share(len(covered & examples), len(examples)),
        size=library.count(),
        repair=funnel,
        usage=sum((entry.usage for entry in entries), funnel.usage),
    )


def _count_repairs(repairs: Iterable[Repair], agents: Mapping[str, Sequence[str]]) -> Funnel:
    given = list(repairs)
    attempts = [attempt for repair in given for attempt in repair.attempts]
    agent_of = {name: agent for agent, names in agents.items() for name in names}
    by_agent: dict[str, Counter[str]] = {}
    for attempt in attempts:
        counts = by_agent.setdefault(agent_of[attempt.predictor], Counter(tried=0, repaired=0))
        counts.update(tried=1, repaired=int(attempt.verdict == "repaired"))
    return Funnel(
        tried=len({repair.parent for repair in given}),  # two critics may have repaired a run
        repaired=len({repair.parent for repair in given if repair.repaired}),
        verdicts=dict(Counter(attempt.verdict for attempt in attempts)),
        by_agent={agent: dict(counts) for agent, counts in by_agent.items()},
        by_rung=_count_rungs(given),
        reliance=_mean([item.reliance for item in attempts if item.reliance is not None]),
        usage=sum((repair.usage for repair in given), Usage()),
    )


def _count_rungs(repairs: Iterable[Repair]) -> dict[str, dict[str, int]]:
    tried: dict[str, set[str]] = {}
    repaired: dict[str, set[str]] = {}
    for repair in repairs:
        for attempt in repair.attempts:
            if attempt.rung:
                tried.setdefault(attempt.rung, set()).add(repair.parent)
                if attempt.verdict == "repaired":
                    repaired.setdefault(attempt.rung, set()).add(repair.parent)
    return {rung: {"tried": len(runs), "repaired": len(repaired.get(rung, set()))} for rung, runs in tried.items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
