"""Tests are imported as `tests.test_x`, and what they share as `tests.toy`: always one module, in children too."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""Of the repository."""
