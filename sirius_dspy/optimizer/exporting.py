"""Opens the library of a compile for an export to TRL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy.adapter import PlainAdapter
from sirius_dspy.errors import LibraryError
from sirius_dspy.library.trl import TRLExport
from sirius_dspy.optimizer.opening import open_library
from sirius_dspy.optimizer.prepare import adapter_name
from sirius_dspy.optimizer.run_dir import RunDir

_KNOWN = (dspy.ChatAdapter, dspy.XMLAdapter, PlainAdapter)
"""Adapters that need no settings to write replies."""


def open_export(
    run_dir: str | Path,
    *,
    iteration: int | None = None,
    threshold: float | None = None,
    adapter: Adapter | None = None,
) -> TRLExport:
    """Open the library of a compile for an export to TRL's trainers.

    Args:
        run_dir: The folder of the compile, which may be unfinished.
        iteration: Iteration whose runs are exported; `None` for all.
        threshold: Minimum reward of a success; `None` for the compile's.
        adapter: The adapter that the compile was run with. Pass it if it is of a class of your own.

    Returns:
        An export of the trained agents. Close its `library` when it is done.

    Raises:
        LibraryError: It is not the folder of a compile, has no library, or was run with an adapter of an unknown class.
        RunDamagedError: A file of the folder is damaged.
    """
    folder = RunDir(Path(run_dir))
    identity = (folder.shown_identity() if folder.path.is_dir() else None) or {}
    if not identity:
        raise LibraryError(
            f"{str(run_dir)!r} is not the folder of a compile, which knows agents and adapter. Pass the `run_dir`; for "
            "other libraries, make a `sirius_dspy.TRLExport` in Python."
        )
    value = identity["settings"]["threshold"] if threshold is None else threshold
    return TRLExport(
        open_library(run_dir),
        agents={name: names for name, names in identity["agents"].items() if name not in identity.get("frozen", ())},
        adapter=adapter or _adapter_of(identity),
        threshold=float(value),
        run=identity["run"],
        iteration=iteration,
        lms=_lms_of(folder),
    )


def _adapter_of(identity: Mapping[str, Any]) -> Adapter:
    settings = identity.get("adapter_settings") or {}
    is_native = bool(settings.get("use_native_function_calling", False))
    for kind in _KNOWN:
        if adapter_name(adapter := kind(use_native_function_calling=is_native)) == identity["adapter"]:
            return adapter
    raise LibraryError(
        f"The compile was run with the adapter {identity['adapter']!r}. Use "
        "`sirius_dspy.open_export(run_dir, adapter=...)` in Python, and pass one of this class."
    )


def _lms_of(folder: RunDir) -> Mapping[str, set[str]]:
    """Return the ids of the LMs that each agent has had: at the start, kept by the gate, or fine-tuned."""
    lms: defaultdict[str, set[str]] = defaultdict(set)
    number = 0
    while (result := folder.iteration(number)) is not None:
        for agent, model in result.lms.items():
            lms[agent].add(model)
        for agent, trained in result.agents.items():
            lms[agent] |= {model for model in (trained.base, trained.lm) if model}
        number += 1
    return lms
