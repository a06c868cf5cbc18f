"""Runs that did not end, because the LM or the network failed."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import dspy

from sirius_dspy.errors import UnfinishedError
from sirius_dspy.running.examples import shorten_example
from sirius_dspy.trajectory import Failure, Lineage


@dataclass(frozen=True)
class Unfinished:
    """A run that did not end, because the LM or the network failed: neither a success nor a failure."""

    example_key: str
    kind: str
    """Class name of the exception."""
    message: str
    run: str = ""
    iteration: int = 0
    sample: int = 0
    seed: int = 0
    origin: str = "rollout"
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC), compare=False)

    @classmethod
    def of(cls, lineage: Lineage, failure: Failure) -> Unfinished:
        """Build it from where the run comes from, and why it did not end."""
        return cls(
            example_key=lineage.example_key,
            kind=failure.kind,
            message=failure.message,
            run=lineage.run,
            iteration=lineage.iteration,
            sample=lineage.sample,
            seed=lineage.seed,
            origin=lineage.origin,
        )


def report_unfinished(runs: Iterable[tuple[dspy.Example, Unfinished]], allowed: int) -> None:
    """Name the examples whose runs did not end: in an error, or in a warning if they are few enough.

    Args:
        runs: One per example.
        allowed: How many of them are only worth a warning.

    Raises:
        UnfinishedError: There are more than allowed.
    """
    unfinished = list(runs)
    if not unfinished:
        return
    reasons = Counter(run.kind for _, run in unfinished)
    text = _describe(unfinished, reasons)
    if len(unfinished) > allowed:
        raise UnfinishedError(
            f"{text} All others are done and kept. Run the same `compile` again, which runs only these, or allow some "
            "to be left out with `max_unfinished`.",
            examples=[run.example_key for _, run in unfinished],
            reasons=reasons,
        )
    warnings.warn(f"{text} The compile goes on without them.", UserWarning, stacklevel=2)


def _describe(unfinished: list[tuple[dspy.Example, Unfinished]], reasons: Counter[str]) -> str:
    kinds = ", ".join(f"{number} x {kind}" for kind, number in reasons.most_common())
    lines = [f"{shorten_example(example)}: {run.kind}: {run.message[:200]}" for example, run in unfinished[:5]]
    if len(unfinished) > 5:
        lines.append(f"and {len(unfinished) - 5} more")
    culprits = "the LM, the network or a worker process" if "WorkerError" in reasons else "the LM or the network"
    return (
        f"The runs of {len(unfinished)} examples did not end, because {culprits} failed ({kinds}): {'; '.join(lines)}."
    )
