"""What travels between a compile and its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy.errors import SettingsError
from sirius_dspy.executors.packing import pack
from sirius_dspy.lms import loads_when_asked
from sirius_dspy.running.executor import Executor
from sirius_dspy.running.journal import current_journal
from sirius_dspy.running.patience import Patience

_SETTINGS = (
    *("lm", "adapter", "rm", "async_max_workers", "disable_history", "track_usage", "provide_traceback"),
    *("num_threads", "max_errors", "allow_tool_async_sync_conversion", "max_history_size", "max_trace_size"),
    *("warn_on_type_mismatch", "interpreter_factory"),
)
"""DSPy's settings that decide how a program runs. Callbacks stay where they are: they belong to this process."""


@dataclass(frozen=True)
class Shipment:
    """A function with all that it needs in another process."""

    function: Callable[[Any], Any]
    patience: Patience
    settings: Mapping[str, Any]
    """DSPy's, as they were where the function was shipped."""
    cache: Mapping[str, Any]
    """How DSPy's cache of LM calls is configured."""
    journal: Path | None
    """Where the calls of runs are kept that have not ended."""

    @classmethod
    def of(cls, function: Callable[[Any], Any], patience: Patience) -> Shipment:
        """A shipment for the current context."""
        journal = current_journal()
        cache = {name: getattr(dspy.cache, name) for name in _CACHE}
        settings = {name: dspy.settings.get(name) for name in _SETTINGS}
        return cls(function, patience, settings, cache, None if journal is None else journal.path)


_CACHE = ("enable_disk_cache", "enable_memory_cache", "disk_cache_dir")


@dataclass(frozen=True)
class Answer:
    """What came of one item."""

    result: Any = None
    error: BaseException | None = None
    faults: tuple[Exception, ...] = ()
    """What the watch over it noted; see `Watch.faults`."""
    has_retried: bool = False
    waits_for_server: bool = False
    """See `Watch.waits_for_server`."""
    has_seen_outage: bool = False
    """Whether a server was down while it was under way."""


class ShippingExecutor(Executor):
    """An executor whose workers are other processes."""

    def check_parts(self, parts: Mapping[str, Any], lms: Iterable[Any]) -> None:
        """See `Executor.check_parts`.

        Args:
            parts: By name.
            lms: Those that will be asked.

        Raises:
            SettingsError: The message names the part.
        """
        inside = sorted({str(lm.model) for lm in lms if loads_when_asked(lm)})
        if inside:
            raise SettingsError(
                f"{inside} run inside one process, which batches all their calls, so other processes cannot share "
                "them. Leave out `executor`: threads keep such an LM busy."
            )
        for name, part in {**parts, "adapter": dspy.settings.adapter}.items():
            try:
                pack(part)
            except Exception as error:
                raise SettingsError(
                    f"The {name} cannot be sent to another process: {type(error).__name__}: {error} Keep open files, "
                    "locks, clients and the like out of it, or make them when they are first used; or leave out "
                    "`executor` to stay in this process."
                ) from error
