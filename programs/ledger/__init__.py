"""Ledger relay: a worker reads a text part by part and hands a note on, and a reporter answers from the last note.

    entries   "Who was the last to enter the hall?"            the worker copies a name or keeps its note
    shells    "How many shells does Anna have at the end?"     the worker adds and subtracts

The worker sees one part and one note, however long the text is. With `parts=320` and `sentences=10`, a text has more
tokens than the context window of SmolLM2, 8192, so that a single agent cannot read it.

Splits never share a text, for any seeds, sizes and settings; see `sirius_dspy.demo.generated`.
"""

from programs.ledger.task import LedgerTask, LedgerTeam, entries, shells

__all__ = ["LedgerTask", "LedgerTeam", "entries", "shells"]
