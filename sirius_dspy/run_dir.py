"""The folder of one compile: what it is, which stages are done, and where their files are.

Each finished stage is one JSON file, written to a temporary name and renamed, so that after a `kill -9` it is there
whole or not at all. Rollouts and repairs are not here but in the experience library, one transaction each.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from filelock import FileLock, Timeout

from sirius_dspy.errors import RunMismatchError
from sirius_dspy.identity import accepted_changes
from sirius_dspy.redact import hide
from sirius_dspy.trajectory import digest


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


class Begun(NamedTuple):
    """A compile that may work in a folder."""

    run: str
    """Its id, which rows of the library carry. It stays, also where the user accepts a change of a setting."""
    resumed: bool


def _record(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, indent=2, sort_keys=True) + "\n"


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

    def begin(self, identity: Mapping[str, Any], accepted: Sequence[str] = ()) -> Begun:
        """Claim the folder for a compile, or go on with the one that it belongs to.

        Args:
            identity: What makes the compile the one that it is; see `sirius_dspy.identity`.
            accepted: Paths in it that may differ from what the folder says; what does is noted there.

        Raises:
            RunMismatchError: The folder belongs to a compile with other settings, data or program.
        """
        path = self.path / "run.json"
        identity = hide(identity)  # as it is written
        if not path.exists():
            run = digest(identity)[:12]
            write_text(path, _record({**identity, "run": run, "accepted": []}))
            return Begun(run, resumed=False)
        before = json.loads(path.read_text(encoding="utf-8"))
        own = {name: before.pop(name, None) for name in ("run", "accepted")}
        if found := accepted_changes(before, identity, str(self.path), accepted):
            own["accepted"] += [{"at": datetime.now(UTC).isoformat(), "changes": list(map(str, found))}]
            write_text(path, _record({**identity, **own}))
        return Begun(str(own["run"]), resumed=True)

    def finished(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage wrote; `None` if it has not finished."""
        path = self._stage(stage)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def finish(self, stage: str, payload: Mapping[str, Any]) -> None:
        """Mark a stage as finished."""
        write_text(self._stage(stage), json.dumps(payload, indent=2) + "\n")

    def _stage(self, stage: str) -> Path:
        return self.path / "stages" / f"{slug(stage)}.json"
