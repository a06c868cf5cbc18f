"""The folder of one compile: what it is, which stages are done, and where their files are.

Each finished stage is one JSON file, written to a temporary name and renamed, so that after a `kill -9` it is there
whole or not at all. Rollouts and repairs are not here but in the experience library, one transaction each.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from sirius_dspy.errors import RunMismatchError
from sirius_dspy.redact import hide


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, and stays through a power cut; credentials are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(hide(text))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def slug(name: str) -> str:
    """A name as a file name: `solver.predict` stays, `agents[0]` becomes `agents_0_`."""
    return re.sub(r"[^\w.-]", "_", name)


@dataclass(frozen=True)
class RunDir:
    """Paths and finished stages of one compile.

    Attributes:
        path: The folder; it is made on first use.
    """

    path: Path

    @property
    def library(self) -> Path:
        """The experience library, unless the user brought one."""
        return self.path / "library.sqlite"

    def training_file(self, iteration: int, agent: str) -> Path:
        """The rows of one agent, as OpenAI chat JSONL."""
        return self.path / "training" / f"iteration-{iteration}" / f"{slug(agent)}.jsonl"

    def training_files(self) -> list[Path]:
        """The rows of all agents and iterations."""
        found = (self.path / "training").glob("iteration-*/*.jsonl")
        return sorted(path for path in found if not path.name.endswith(".sources.jsonl"))

    def weights(self, iteration: int, agent: str) -> Path:
        """The folder of one fine-tuning job."""
        return self.path / "weights" / f"iteration-{iteration}" / slug(agent)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second compile out; the lock goes with the process, however it ends.

        Raises:
            RunMismatchError: Another compile works in this folder right now.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise RunMismatchError(
                f"Another compile is at work in {str(self.path)!r}. Wait for it, or give this one a `run_dir` of its "
                "own."
            ) from error

    def begin(self, identity: Mapping[str, Any]) -> bool:
        """Claim the folder for a compile with these settings; true if it has begun before.

        Raises:
            RunMismatchError: The folder belongs to a compile with other settings, data or program.
        """
        path = self.path / "run.json"
        identity = hide(identity)  # as it is written
        if not path.exists():
            write_text(path, json.dumps(identity, indent=2, sort_keys=True) + "\n")
            return False
        before = json.loads(path.read_text(encoding="utf-8"))
        if differing := sorted(key for key in {*before, *identity} if before.get(key) != identity.get(key)):
            name = differing[0]
            raise RunMismatchError(
                f"{str(self.path)!r} belongs to another compile: {', '.join(map(repr, differing))} differ ({name} was "
                f"{before.get(name)!r}, now {identity.get(name)!r}). Call `compile` with the same settings, data and "
                "program to go on from there, or choose another `run_dir`."
            )
        return True

    def finished(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage wrote; `None` if it has not finished."""
        path = self._stage(stage)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def finish(self, stage: str, payload: Mapping[str, Any]) -> None:
        """Mark a stage as finished."""
        write_text(self._stage(stage), json.dumps(payload, indent=2) + "\n")

    def _stage(self, stage: str) -> Path:
        return self.path / "stages" / f"{slug(stage)}.json"
