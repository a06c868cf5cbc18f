"""The folder of one compile: what it is, which stages are done, and where their files are.

Each finished stage is one JSON file, written to a temporary name and renamed, so that after a `kill -9` it is there
whole or not at all. Rollouts and repairs are not here but in the experience library, one transaction each.

Files are read in one place, which checks them: what is cut short, empty, or something else than was written is a
`RunDamagedError`, and a folder that cannot be used is a `RunDirError`; both say what can be done.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from filelock import FileLock, Timeout

from sirius_dspy.errors import RunDamagedError, RunDirError, RunMismatchError, SiriuSError
from sirius_dspy.files import file_name, write_text
from sirius_dspy.identity.parts import Change, check_changes
from sirius_dspy.optimizer import records
from sirius_dspy.optimizer.record_files import (
    RESTORE,
    advice_on,
    damaged,
    read_record_file,
    read_result_file,
    read_text,
)
from sirius_dspy.optimizer.results import CompileResult, HeldOutScores, IterationResult
from sirius_dspy.redact import hide
from sirius_dspy.trajectory import digest

_PROBE = b" " * (1 << 16)
"""What is written for a moment, to see whether anything can be."""


Compare = Callable[[Mapping[str, Any], Mapping[str, Any], str, Sequence[str]], list[Change]]
"""Gives what differs between the identity in a folder and that of a call; see `check_changes`."""


class Begun(NamedTuple):
    """A compile that may work in a folder."""

    run: str
    """Its id, which rows of the library carry. It stays, also where the user accepts a change of a setting."""
    resumed: bool


@dataclass(frozen=True)
class RunDir:
    """Paths and finished stages of one compile.

    Attributes:
        path: The folder; it is made on first use.
        file: Name of the file that says whose folder it is.
    """

    path: Path
    file: str = "run.json"

    @property
    def library(self) -> Path:
        """The experience library, unless the user brought one."""
        return self.path / "library.sqlite"

    def training_file(self, iteration: int, agent: str) -> Path:
        """The rows of one agent, as OpenAI chat JSONL."""
        return self.path / "training" / f"iteration-{iteration}" / f"{file_name(agent)}.jsonl"

    def training_files(self) -> list[Path]:
        """The rows of all agents and iterations."""
        found = (self.path / "training").glob("iteration-*/*.jsonl")
        return sorted(path for path in found if not path.name.endswith(".sources.jsonl"))

    @property
    def calls(self) -> Path:
        """The calls of runs under way, one file per stage that has not ended; see `CallJournal`."""
        return self.path / "calls"

    def weights(self, iteration: int, agent: str) -> Path:
        """The folder of one fine-tuning job."""
        return self.path / "weights" / f"iteration-{iteration}" / file_name(agent)

    @contextmanager
    def usable(self) -> Iterator[None]:
        """Say in our words what goes wrong with the folder.

        Raises:
            RunDirError: The file system refused what the block did.
        """
        try:
            yield
        except SiriuSError:
            raise
        except (OSError, ValueError) as error:  # a path with a NUL character is a ValueError
            raise RunDirError(f"The run directory {str(self.path)!r} cannot be used: {advice_on(error)}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second compile out; the lock goes with the process, however it ends.

        Raises:
            RunMismatchError: Another compile works in this folder right now.
            RunDirError: The folder cannot be used.
        """
        with self.usable():
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            try:
                lock.acquire()
            except Timeout as error:
                raise RunMismatchError(
                    f"Another compile is at work in {str(self.path)!r}. Wait for it, or give this one a `run_dir` of "
                    "its own."
                ) from error
        try:
            self.check_writable()
            yield
        finally:
            lock.release()

    def check_writable(self) -> None:
        """Notice a full disk, or a folder without permission, before something is paid for whose result goes here.

        Raises:
            RunDirError: The folder cannot be used.
        """
        probe = self.path / f".probe.{uuid4().hex[:8]}"
        with self.usable():
            for part in ("stages", "training", "weights"):
                if os.path.lexists(self.path / part) and not (self.path / part).is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.path / part))
            try:
                with probe.open("wb") as file:
                    file.write(_PROBE)
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                probe.unlink(missing_ok=True)

    # The compile

    def identity(self) -> dict[str, Any] | None:
        """What makes the compile what it is; `None` if none has begun here.

        Raises:
            RunDamagedError: The file is damaged, or gone while stages are there.
        """
        found = read_record_file(self.path / self.file, RESTORE)
        if found is None and any((self.path / "stages").glob("*.json")):
            raise RunDamagedError(
                f"{str(self.path)!r} has finished stages, but its {self.file!r} is missing, so that nobody knows whose "
                f"they are. {RESTORE}",
                path=self.path / self.file,
            )
        return found

    def shown_identity(self) -> dict[str, Any] | None:
        """`identity`, with what a report shows of it.

        Raises:
            RunDamagedError: As for `identity`, or a part is missing.
        """
        self.identity()
        return read_record_file(self.path / self.file, RESTORE, records.Identity)

    def begin(
        self, identity: Mapping[str, Any], accepted: Sequence[str] = (), compare: Compare = check_changes
    ) -> Begun:
        """Claim the folder for a compile, or go on with the one that it belongs to.

        Args:
            identity: What makes the compile the one that it is; see `sirius_dspy.identity.parts`.
            accepted: Paths in it that may differ from what the folder says; what does is noted there.
            compare: Refuses other changes.

        Raises:
            RunMismatchError: The folder belongs to a compile with other settings, data or program.
            RunDamagedError: Nobody can tell whether it does.
            RunDirError: The folder cannot be used.
        """
        identity = hide(identity)  # as it is written
        before = self.identity()
        if before is None:
            run = digest(identity)[:12]
            self._claim({**identity, "run": run, "accepted": []})
            return Begun(run, resumed=False)
        run, noted = before.pop("run", None), before.pop("accepted", None)
        found = compare(before, identity, str(self.path), accepted)
        if not isinstance(run, str) or not isinstance(noted, list):
            raise damaged(self.path / self.file, "it does not say which compile it is of", RESTORE)
        if found:
            noted.append({"at": datetime.now(UTC).isoformat(), "changes": list(map(str, found))})
            self._claim({**identity, "run": run, "accepted": noted})
        return Begun(run, resumed=True)

    def _claim(self, record: Mapping[str, Any]) -> None:
        with self.usable():
            write_text(self.path / self.file, json.dumps(record, indent=2, sort_keys=True) + "\n")

    def note_library(self, library_id: str, url: str) -> None:
        """Write down with which library the compile begins; done before `begin`, so that it is never missing."""
        with self.usable():
            record = {"library_id": library_id, "url": url}
            write_text(self.path / "library.json", json.dumps(record, indent=2) + "\n")

    def noted_library(self) -> dict[str, Any] | None:
        """What `note_library` wrote; `None` if no compile has begun here.

        Raises:
            RunDamagedError: The file is damaged, or is gone.
        """
        path = self.path / "library.json"
        found = read_record_file(path, RESTORE, records.LibraryRecord)
        if found is None and self.identity() is not None:
            raise RunDamagedError(f"The file {str(path)!r} is missing. {RESTORE}", path=path)
        return found

    # Its stages

    def iteration(self, number: int) -> IterationResult | None:
        """What a finished iteration did; `None` if it has not finished.

        Raises:
            RunDamagedError: See `finished`.
        """
        advice = (
            "Restore it from a backup, or delete it and call `compile` again: the iteration is then put together from "
            "the library and its fine-tuning jobs, without any LM call."
        )
        path = self._stage(f"iteration-{number}")
        return read_result_file(path, advice, IterationResult, iteration=number)

    def job(self, iteration: int, agent: str) -> records.Job | None:
        """A finished fine-tuning job; `None` if it has not finished.

        Raises:
            RunDamagedError: See `finished`.
        """
        advice = (
            "It says which weights a fine-tuning job made. Restore it from a backup, or delete it and call `compile` "
            "again: the job is then done again, which a hosted provider charges for."
        )
        path = self._stage(f"train-{iteration}-{agent}")
        job = read_record_file(path, advice, records.Job, iteration=iteration, agent=agent)
        return None if job is None else records.Job(**job)

    def iterations_with_jobs(self) -> list[int]:
        """Numbers of the iterations with a finished fine-tuning job, ascending."""
        names = [path.name for path in (self.path / "stages").glob("train-*.json")]
        return sorted({int(match[1]) for name in names if (match := re.match(r"train-(\d+)-", name))})

    def results(self) -> CompileResult | None:
        """The results of a finished compile; `None` if it has not finished, or goes on after a finished one.

        Raises:
            RunDamagedError: See `finished`.
        """
        advice = "Delete it, and call the same `compile` again: it writes the file anew, without any LM call."
        return read_result_file(self._stage("results"), advice, CompileResult)

    def spending(self) -> records.Spending | None:
        """What was spent so far; `None` if nothing was noted.

        Raises:
            RunDamagedError: See `finished`.
        """
        advice = "Delete it, and call the same `compile` again: what was spent is then counted from the library."
        record = read_record_file(self._stage("spending"), advice, records.Spending)
        return None if record is None else records.Spending(**record)

    def test(self) -> HeldOutScores | None:
        """Scores on test examples; `None` if nobody measured them.

        Raises:
            RunDamagedError: See `finished`.
        """
        advice = "Delete it, and run the test again."
        return read_result_file(self._stage("test"), advice, HeldOutScores)

    def finish_test(self, scores: HeldOutScores) -> None:
        """Keep scores on test examples, for the report.

        Raises:
            RunDirError: The folder cannot be used.
        """
        self.finish("test", scores.to_dict())

    def finished(self, stage: str, shape: type[records.Record] = records.Record) -> dict[str, Any] | None:
        """What any other finished stage wrote; `None` if it has not finished.

        Raises:
            RunDamagedError: The file is cut short, empty, or not what was written; the message says what can be done.
        """
        advice = "Restore it from a backup, or delete it to have the stage done again."
        return read_record_file(self._stage(stage), advice, shape)

    def finish(self, stage: str, payload: Mapping[str, Any]) -> None:
        """Mark a stage as finished.

        Raises:
            RunDirError: The folder cannot be used.
        """
        with self.usable():
            write_text(self._stage(stage), json.dumps(payload, indent=2) + "\n")

    def finish_job(self, job: records.Job) -> None:
        """Mark a fine-tuning job as finished.

        Raises:
            RunDirError: The folder cannot be used.
        """
        self.finish(f"train-{job.iteration}-{job.agent}", job.model_dump())

    def last_change(self) -> datetime:
        """When the compile last finished a stage, or else when it began.

        Raises:
            RunDirError: The folder cannot be read.
        """
        with self.usable():
            files = [*(self.path / "stages").glob("*.json")] or [self.path / self.file]
            return datetime.fromtimestamp(max(file.stat().st_mtime for file in files), UTC)

    def reopen(self) -> None:
        """Forget the results, and tests of them: a compile that goes on has none until it has finished again."""
        with self.usable():
            for stage in ("results", "test"):
                self._stage(stage).unlink(missing_ok=True)

    def training_rows(self, iteration: int, agent: str) -> list[str] | None:
        """The lines of a training file; `None` if there is none.

        Raises:
            RunDamagedError: A line is not a chat row.
        """
        path = self.training_file(iteration, agent)
        text = read_text(path, _TRAINING_ADVICE)
        if text is None:
            return None
        lines = text.split("\n")
        if lines.pop():
            raise damaged(path, "its last line is cut short", _TRAINING_ADVICE)
        for number, line in enumerate(lines, start=1):
            try:
                records.read_record(line, records.Row)
            except ValueError as error:
                raise damaged(path, f"line {number}: {error}", _TRAINING_ADVICE) from error
        return lines

    def _stage(self, stage: str) -> Path:
        return self.path / "stages" / f"{file_name(stage)}.json"


_TRAINING_ADVICE = "Restore it from a backup; training files are only for reading, and `compile` does not need them."
