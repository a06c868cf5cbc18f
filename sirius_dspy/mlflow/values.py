"""The parameters, tags and metrics of a compile's runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from sirius_dspy.optimizer.results import CompileResult, UsageResult
from sirius_dspy.redact import without_secrets
from sirius_dspy.tracking.events import CompileStarted

SCORE = "val/score"

UNKNOWN = "unknown"
"""The tag of a price that no table lists."""


def identity_tags(run: str, level: str, *, iteration: int | None = None, agent: str | None = None) -> dict[str, str]:
    """The tags by which a run, model or trace is found again.

    Args:
        run: Id of the compile.
        level: What it is: `compile`, `iteration`, `finetune`, `agent`, `program` or `trace`.
        iteration: From 1.
        agent: Name of the agent.
    """
    tags = {"sirius.run": run, "sirius.level": level}
    if iteration is not None:
        tags["sirius.iteration"] = str(iteration)
    if agent is not None:
        tags["sirius.agent"] = agent
    return tags


def start_tags(event: CompileStarted) -> dict[str, str]:
    """The tags of the root run."""
    agents = {agent: list(predictors) for agent, predictors in event.agents.items()}
    return {
        **identity_tags(event.run, "compile"),
        "sirius.program": event.program,
        "sirius.run_dir": str(event.run_dir),
        "sirius.library": event.library_url,
        "sirius.agents": json.dumps(agents, ensure_ascii=False),
    }


def start_params(event: CompileStarted) -> dict[str, Any]:
    """The parameters of the root run.

    Where the compile works is a tag: as a parameter, it would be the first difference between any two compiles.
    """
    return {
        **{name: value for name, value in without_secrets(event.params).items() if name != "run_dir"},
        **{f"agent.{agent}": ", ".join(predictors) for agent, predictors in event.agents.items()},
        **{f"lm.{agent}": lm for agent, lm in event.lms.items()},
        "adapter": event.adapter,
        "num_train": event.num_train,
        "num_val": event.num_val,
        **{f"version.{package}": _version(package) for package in ("dspy", "mlflow", "sirius-dspy")},
    }


def end_tags(results: CompileResult, error: str) -> dict[str, str]:
    """How the compile ended, as tags of the root run."""
    tags = {
        "sirius.ended": results.ended,
        "sirius.reason": results.reason,
        "sirius.best_iteration": "" if results.best_iteration is None else str(results.best_iteration),
        "sirius.usd": UNKNOWN if results.usage.usd is None else f"{results.usage.usd:.4f}",
        "sirius.error": error,
    }
    return {name: value for name, value in tags.items() if value}


def total_metrics(results: CompileResult) -> dict[str, float]:
    """What one compares between compiles: the best score, and what all of it took."""
    score = {} if results.best_score is None else {"best/score": results.best_score}
    return {**score, **usage_metrics("total", results.usage), "total/seconds": results.seconds}


def stage_metrics(stages: Mapping[str, UsageResult]) -> dict[str, float]:
    """What the stages of an iteration took."""
    return {
        name: value for stage, usage in stages.items() for name, value in usage_metrics(f"cost/{stage}", usage).items()
    }


def usage_metrics(prefix: str, usage: UsageResult) -> dict[str, float]:
    """LM calls, tokens and, where prices are listed, US dollars."""
    money = {} if usage.usd is None else {f"{prefix}/usd": usage.usd}
    return {
        f"{prefix}/calls": float(usage.calls),
        f"{prefix}/prompt_tokens": float(usage.prompt_tokens),
        f"{prefix}/completion_tokens": float(usage.completion_tokens),
        **money,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"  # e.g. run from a source tree
