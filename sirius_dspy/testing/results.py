"""Results of a compile, for tests of code that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sirius_dspy.optimizer.results import CompileResult, IterationResult
from sirius_dspy.running.standing import Standing


def make_iteration(iteration: int = 1, score: float = 0.5, *, num_val: int = 10, **fields: Any) -> IterationResult:
    """Make the result of an iteration.

    Args:
        iteration: Number of the iteration, from 0.
        score: Mean reward on the valset.
        num_val: Number of examples in the valset.
        **fields: Further fields of the `IterationResult`.
    """
    standing = Standing(ended=num_val, broken=0, total=score * num_val, lowest=min(score, 0.0))
    defaults: dict[str, Any] = {"lms": {"solver": f"solver@{iteration}"}, "standing": standing}
    return IterationResult(iteration=iteration, score=score, num_val=num_val, **{**defaults, **fields})


def make_result(scores: Sequence[float | IterationResult] = (0.0, 0.5), **fields: Any) -> CompileResult:
    """Make the result of a compile.

    Args:
        scores: Scores or results of the iterations from 0.
        **fields: Further fields of the `CompileResult`.
    """
    defaults: dict[str, Any] = {
        "run": "0f3a55aa77",
        "adapter": "ChatAdapter",
        "seed": 7,
        "threshold": 1.0,
        "agents": {"solver": ("solver",)},
        "ended": "finished",
        "iterations": tuple(
            score if isinstance(score, IterationResult) else make_iteration(number, score)
            for number, score in enumerate(scores)
        ),
    }
    return CompileResult(**{**defaults, **fields})
