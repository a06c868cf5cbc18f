"""What a worker answered, told to the context that waits for it."""

from __future__ import annotations

from typing import Any

from sirius_dspy.executors.packing import unpack
from sirius_dspy.executors.shipment import Answer
from sirius_dspy.running.watch import current_watch


def take_answer(data: bytes) -> Any:
    """Return the result of an item or raise its error, after the watch has heard what went wrong with the LMs."""
    answer: Answer = unpack(data)
    if (watch := current_watch()) is not None:
        for fault in answer.faults:
            watch.note_fault(fault)
        watch.has_retried |= answer.has_retried
        watch.waits_for_server |= answer.waits_for_server
        if answer.has_seen_outage:
            watch.health.note_outage()
        if answer.error is None and not answer.faults:
            watch.health.note_answer()
    if answer.error is not None:
        raise answer.error
    return answer.result
