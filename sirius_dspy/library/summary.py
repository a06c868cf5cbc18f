"""What an iteration did and took, counted from the experience library, so that a resumed compile counts the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.trajectory import Repair, Usage


class Summary:
    """Counts of one iteration.

    Args:
        library: Where the iteration's runs and repairs are.
        run: Id of the compile.
        iteration: From 1.
        threshold: A run succeeded if it ended with a reward of at least this.
        agents: Agent name to its predictors.
    """

    def __init__(
        self,
        library: ExperienceLibrary,
        run: str,
        iteration: int,
        *,
        threshold: float,
        agents: Mapping[str, Sequence[str]],
    ) -> None:
        self.usage = Usage()
        self.runs = self.successes = self.failures = 0
        examples: set[str] = set()
        solved: set[str] = set()
        for found in library.trajectories(run=run, iteration=iteration):
            self.usage += found.usage
            if found.origin == "rollout":
                self.runs += 1
                examples.add(found.example_key)
                self.failures += found.failure is not None
                if found.succeeded(threshold):
                    self.successes += 1
                    solved.add(found.example_key)
        self.solved_rate = len(solved) / len(examples) if examples else 0.0
        self.size = library.count()
        self.repair = _repairs(library.repairs(run=run, iteration=iteration), agents)
        self.usage += Usage(*(self.repair[name] for name in ("calls", "prompt_tokens", "completion_tokens")))

    def metrics(self, agents: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Headline numbers, by the names that tracking uses."""
        found = {
            "collect/runs": float(self.runs),
            "collect/success_rate": _share(self.successes, self.runs),
            "collect/solved_rate": self.solved_rate,
            "collect/failure_rate": _share(self.failures, self.runs),
            "repair/tried": float(self.repair["tried"]),
            "repair/repaired": float(self.repair["repaired"]),
            "repair/rate": _share(self.repair["repaired"], self.repair["tried"]),
            "repair/leaked": float(self.repair["verdicts"].get("leaked", 0)),
            "library/size": float(self.size),
        }
        for agent, entry in agents.items():
            found[f"rows/{agent}"] = float(entry["rows"])
            if entry["losses"] and entry["losses"][-1] is not None:  # the last loss was no number
                found[f"loss/{agent}"] = entry["losses"][-1]
        return found

    def prices(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """What the iteration took."""
        return {f"usage/{name}": float(value) for name, value in self.usage_dict.items()} | {
            f"seconds/{stage}": value for stage, value in seconds.items()
        }

    @property
    def usage_dict(self) -> dict[str, int]:
        """Calls and tokens of all rollouts, repairs and validations."""
        return {
            "calls": self.usage.calls,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
        }


def _repairs(repairs: Iterable[Repair], agents: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The repair funnel."""
    verdicts: Counter[str] = Counter()
    by_agent: dict[str, Counter[str]] = {}
    tried = repaired = 0
    usage = Usage()
    agent_of = {name: agent for agent, names in agents.items() for name in names}
    for repair in repairs:
        tried += 1
        repaired += repair.repaired
        usage += repair.usage
        for attempt in repair.attempts:
            verdicts[attempt.verdict] += 1
            counts = by_agent.setdefault(agent_of[attempt.predictor], Counter(tried=0, repaired=0))
            counts["tried"] += 1
            counts["repaired"] += attempt.verdict == "repaired"
    return {
        "tried": tried,
        "repaired": repaired,
        "verdicts": dict(verdicts),
        "by_agent": {agent: dict(counts) for agent, counts in by_agent.items()},
        "calls": usage.calls,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
