"""What a run directory keeps of a fine-tuning job at a server: enough not to pay twice, and to look at it later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sirius_dspy.files import write_text

RECORD = "job.json"
"""Name of the file in the folder of a job."""

_CHARACTERS_PER_TOKEN = 4
"""Roughly, for English texts."""


@dataclass
class HostedRecord:
    """One job, as it is kept on disk. It never holds a key."""

    key: str
    """What the job is made from; a record of other rows or settings does not count."""
    agent: str = ""
    model: str = ""
    """The model from which it trains."""
    address: str = ""
    """The server, without credentials."""
    rows: int = 0
    """Number of rows to train on."""
    tokens: int = 0
    """An estimate of the tokens of these rows."""
    epochs: int | None = None
    """`None` if the server chooses."""
    created: float = 0.0
    """When the job was created, or first prepared, in seconds since 1970."""
    file: str = ""
    """Id of the uploaded rows."""
    validation: str = ""
    """Id of the uploaded rows that are held out."""
    job: str = ""
    """Id of the job."""
    is_denied: bool = False
    """Whether the server said, several times, that it does not know the job."""
    trained_tokens: int | None = None
    """What the server counted at the end, over all epochs; it charges for these."""

    def write(self, folder: Path) -> None:
        """Put the ids on disk at once: they are all that is needed not to pay twice."""
        write_text(folder / RECORD, json.dumps(asdict(self)))


def read_record(folder: Path) -> HostedRecord | None:
    """Read a record; `None` if there is none, or it is damaged."""
    try:
        given = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return HostedRecord(**{field.name: given[field.name] for field in fields(HostedRecord) if field.name in given})
    except (OSError, ValueError, TypeError):
        return None


def estimate_epochs(num_rows: int) -> int:
    """Estimate the epochs of a job if the server chooses: three, more for few rows and fewer for very many.

    References:
        https://cookbook.openai.com/examples/chat_finetuning_data_prep
    """
    if num_rows * 3 < 100:
        return min(25, 100 // max(num_rows, 1))
    return 3 if num_rows * 3 <= 25_000 else max(1, 25_000 // num_rows)


def estimate_tokens(rows: Sequence[Mapping[str, Any]]) -> int:
    """Estimate the tokens of chat rows, tools and tool calls among them, for one epoch; images are left out."""
    return sum(map(_count_characters, rows)) // _CHARACTERS_PER_TOKEN


def _count_characters(row: Mapping[str, Any]) -> int:
    texts = [text for message in row["messages"] for text in _texts_of(message.get("content"))]
    calls = [message["tool_calls"] for message in row["messages"] if message.get("tool_calls")]
    tools = [row["tools"]] if row.get("tools") else []
    return sum(map(len, texts)) + sum(len(json.dumps(part, ensure_ascii=False)) for part in (*calls, *tools))


def _texts_of(content: Any) -> list[str]:
    """Return the text of a message, or those of its parts, as where it has images."""
    if isinstance(content, list):
        content = [part.get("text") for part in content if isinstance(part, Mapping)]
    else:
        content = [content]
    return [text for text in content if isinstance(text, str)]
