"""MkDocs hook: `<!-- readme: Title -->` becomes the section of README.md with that title.

The markers stand in pages of docs/ itself, so that links into docs/ only lose that folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of one page."""
    return re.sub(r"<!-- readme: (.+) -->", lambda match: _section(match[1]), markdown)


def _section(title: str) -> str:
    """Return the text below a second-level heading.

    Raises:
        ValueError: README.md has no such heading.
    """
    text = README.read_text(encoding="utf-8")
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise ValueError(f"README.md has no section {title!r}. Correct the marker.")
    return match[1].strip().replace("](docs/", "](")
