"""MkDocs hook: `<!-- readme: Title -->` becomes that section of README.md, so that nothing is written twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of one page."""
    return re.sub(r"<!-- readme: (.+) -->", lambda match: _section(match[1]), markdown)


def _section(title: str) -> str:
    """What stands below a second-level heading.

    Raises:
        ValueError: README.md has no such heading.
    """
    text = README.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"README.md has no section {title!r}. Correct the marker.")
    return found[1].strip()
