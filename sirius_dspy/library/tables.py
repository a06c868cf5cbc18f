"""Writes rows of chats, texts and labels into a JSON lines or Parquet file, a batch at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sirius_dspy.errors import LibraryError
from sirius_dspy.library.export import whole_file
from sirius_dspy.library.writing import split_batches

if TYPE_CHECKING:
    import pyarrow

_CHATS = ("prompt", "completion", "chosen", "rejected")
"""Columns that hold messages."""

ENDINGS = (".jsonl", ".parquet")


def check_ending(path: Path) -> None:
    """Refuse a file whose name does not say what is to be written into it.

    Raises:
        LibraryError: The name ends in neither `.jsonl` nor `.parquet`.
    """
    if path.suffix not in ENDINGS:
        raise LibraryError(f"The file {str(path)!r} has the ending {path.suffix!r}, expected one of {list(ENDINGS)}.")


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows into a file that appears when it is complete.

    Raises:
        LibraryError: The name ends in neither `.jsonl` nor `.parquet`.
    """
    check_ending(path)
    with whole_file(path) as partial:
        if path.suffix == ".jsonl":
            _write_jsonl(partial, rows)
        else:
            _write_parquet(partial, rows, columns)


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    # With tools, messages have different fields, and arguments different types, which no struct can hold.
    is_native = "tools" in columns
    text = [("role", pyarrow.string()), ("content", pyarrow.string())]
    message = pyarrow.string() if is_native else pyarrow.struct(text)
    kinds = {"label": pyarrow.bool_(), **dict.fromkeys(_CHATS, pyarrow.list_(message))}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in columns])
    written = _with_json_type(pyarrow.RecordBatch.from_pylist([], schema)).schema if is_native else schema
    with pyarrow.parquet.ParquetWriter(path, written) as writer:
        for rows_of_batch in split_batches(map(_with_json, rows) if is_native else rows):
            batch = pyarrow.RecordBatch.from_pylist(rows_of_batch, schema)
            writer.write_batch(_with_json_type(batch) if is_native else batch)


def _with_json(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row with its messages as JSON texts."""
    return {
        name: [json.dumps(message, ensure_ascii=False) for message in value] if name in _CHATS else value
        for name, value in row.items()
    }


def _with_json_type(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """Return a batch whose messages have Arrow's type for JSON, by which `datasets` reads them as tables."""
    import pyarrow

    def convert(column: Any) -> Any:
        values = pyarrow.ExtensionArray.from_storage(pyarrow.json_(), column.values)
        return pyarrow.ListArray.from_arrays(column.offsets, values)

    names = batch.schema.names
    columns = [convert(batch[name]) if name in _CHATS else batch[name] for name in names]
    return pyarrow.RecordBatch.from_arrays(columns, names)
