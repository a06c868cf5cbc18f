"""The experience library: every run of every program, good or bad, with its lineage, in one database.

This module owns what is stored and how it is asked for. Identity is by content: a trajectory is stored under
`Trajectory.id`, a repair under a hash of its attempts, so that writing twice stores once. Rows are only ever added.
What a method added before it returned is on disk: killing the process loses nothing.
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack

import dspy
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from sirius_dspy.errors import LibraryDamagedError, LibraryError
from sirius_dspy.library.database import open_engine, parse_url, public_url, reporting
from sirius_dspy.library.migrations import (
    ATTEMPTS,
    EXAMPLES,
    META,
    METADATA,
    REPAIRS,
    REQUESTS,
    STEPS,
    TRAJECTORIES,
    UNFINISHED,
    escaped_name,
)
from sirius_dspy.plain import text_digest
from sirius_dspy.redact import hide, remember_address
from sirius_dspy.running.requests import prompt_text
from sirius_dspy.running.standing import Standing
from sirius_dspy.running.unfinished import Unfinished
from sirius_dspy.trajectory import (
    Attempt,
    Failure,
    Origin,
    Repair,
    Step,
    Trajectory,
    Usage,
    Values,
    canonical,
    digest,
    example_key,
    from_plain,
    to_plain,
)

if TYPE_CHECKING:
    import datasets

T = TypeVar("T")
Rows = Sequence[sa.Row[Any]]


_RESTORE = "Restore it from a backup, or begin anew in another `run_dir`."

_SHOWN_IDS = 5
"""Ids in the message about a prefix that several have."""

PAGE = 100
"""Rows read at a time: the most trajectories that a reader holds in memory."""

BATCH = 500
"""Trajectories per transaction of `add_all`; at one each, waiting for the disk takes most of the time."""


class Filters(TypedDict, total=False):
    """Which trajectories; every filter that is given must hold, and `None` is the same as not given."""

    run: str | None
    iteration: int | None
    origin: Origin | Collection[Origin] | None
    """One, or any of several."""
    example_key: str | None
    min_reward: float | None
    """The least reward, itself included, of a run that ended: C(n) of the paper is `min_reward=threshold`."""
    max_reward: float | None
    """The greatest reward, itself included."""
    below: float | None
    """A bound that the run did not reach, or broke before it could: `below=threshold` are the failed runs."""
    predictor: str | Collection[str] | None
    """A run that called it, or any of several."""
    program: str | None
    parent: str | None
    """Id of the failed trajectory: its repairs."""
    sample: int | None


@dataclass(frozen=True, slots=True)
class LibraryStats:
    """What one iteration of one run added, by origin."""

    run: str
    iteration: int
    origin: Origin
    num_trajectories: int
    num_successes: int
    """That ended with `reward >= threshold`."""
    mean_reward: float
    """A run that broke counts as the lowest reward of the group, and at most 0; see `sirius_dspy.running.standing`."""
    usage: Usage
    num_steps: Mapping[str, int]
    """Predictor name to its number of steps."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A trajectory without its steps and per-agent rewards, for lists: reading it costs one row."""

    id: str
    run: str
    iteration: int
    sample: int
    origin: Origin
    parent: str | None
    edited: int | None
    example_key: str
    reward: float
    prediction: Any
    failure: Failure | None
    usage: Usage
    seconds: float

    def succeeded(self, threshold: float) -> bool:
        """Whether the run ended with a reward of at least the threshold; one that broke never did."""
        return self.failure is None and self.reward >= threshold


class ExperienceLibrary:
    """All trajectories and repairs, append-only, in SQLite or PostgreSQL.

    A handle is cheap: it opens its database on first use, may be shared by threads, and survives `fork`, `pickle` and
    `deepcopy`, after which it opens the database anew. Several processes may write; their transactions take turns.
    Readers see what was there when they began, in order of insertion, hold `PAGE` trajectories at a time, and neither
    wait for writers nor keep them waiting.

    Args:
        url: A file (created with its folders if absent), `sqlite:///path`, or `postgresql+psycopg://…` for several
            machines. SQLite needs a local disk: its locks do not work on network file systems. A handle for
            PostgreSQL that is pickled carries the password, as it must.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, ExperienceLibrary(f"{folder}/library.db") as library:
        ...     id = library.add(Trajectory(example_key="e1", steps=(), prediction={"answer": "4"}, reward=1.0))
        ...     [trajectory.prediction for trajectory in library.trajectories(min_reward=1.0)]
        [{'answer': '4'}]
    """

    def __init__(self, url: str | Path | sa.URL) -> None:
        self._url = parse_url(url)
        if self._url.password or self._url.query:
            remember_address(self._url.render_as_string(hide_password=False))
        self._engine: sa.Engine | None = None
        self._pid = 0  # of the process that opened `_engine`: connections must not be shared across a fork
        self._lock = threading.Lock()  # protects `_engine` and `_pid`: threads open the database once

    @classmethod
    def existing(cls, where: str | Path | sa.URL) -> Self:
        """A library that must be there already; nothing is created.

        Args:
            where: As for the constructor. `sirius_dspy.open_library` takes the folder of a compile, too.

        Raises:
            LibraryError: There is none.
        """
        library = cls(where)
        if library._url.get_backend_name() == "sqlite" and not Path(str(library._url.database)).is_file():
            raise LibraryError(
                f"There is no library at {library.url!r}. Pass a SQLite file or a database URL, or open the folder of "
                "a compile with `sirius_dspy.open_library`."
            )
        _check_not_empty(library._url)
        return library

    @property
    def library_id(self) -> str:
        """What the library was given when it was made; no two libraries share it, and a copy keeps it."""
        with self._reading() as connection:
            return str(connection.execute(sa.select(META.c.value).where(META.c.key == "library_id")).scalar_one())

    @property
    def url(self) -> str:
        """The database URL, without its password."""
        return public_url(self._url)

    def __repr__(self) -> str:
        return f"ExperienceLibrary({self.url!r})"

    def __reduce__(self) -> tuple[type[Self], tuple[sa.URL]]:
        return type(self), (self._url,)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose(close=self._pid == os.getpid())
            self._engine = None

    # Writing

    def add(self, trajectory: Trajectory, example: dspy.Example | None = None) -> str:
        """Store a trajectory, and the example it was made from, unless they are there.

        Args:
            trajectory: Its `parent`, if any, is in the library.
            example: So that the library can be read without the dataset.

        Returns:
            The trajectory's id.

        Raises:
            LibraryError: It holds other values than plain JSON, its parent is absent, or the database failed.
        """
        if example is not None and example_key(example) != trajectory.example_key:
            raise LibraryError(
                f"The example has the key {example_key(example)!r}, but the trajectory was made from "
                f"{trajectory.example_key!r}. Pass the example that the program ran on."
            )
        stored = _hidden(trajectory)
        self._add_batch([stored], [] if example is None else [example])
        return stored.id

    def add_all(self, trajectories: Iterable[Trajectory], examples: Iterable[dspy.Example] = ()) -> int:
        """Store many trajectories, `BATCH` in a transaction; for imports.

        Args:
            trajectories: Parents come before their repairs, or in the same batch. Not held in memory.
            examples: Those they were made from.

        Returns:
            How many were new.

        Raises:
            LibraryError: As in `add`; the batches before the one that failed are stored.
        """
        added = sum(self._add_batch([], batch) for batch in _batches(examples))
        return added + sum(self._add_batch(batch, []) for batch in _batches(trajectories))

    def _add_batch(self, new: Sequence[Trajectory], made_from: Sequence[dspy.Example]) -> int:
        stored = [_hidden(trajectory) for trajectory in new]
        for trajectory in stored:
            _check_trajectory(trajectory)
        for example in made_from:
            _check_example(example)
        return self._write(lambda connection: _add(connection, stored, made_from))

    def add_repair(self, repair: Repair, trajectories: Iterable[Trajectory]) -> None:
        """Store a repair and its replayed runs, all or none.

        Args:
            repair: Its `parent` is in the library.
            trajectories: The run of every attempt that names one, successful or not.

        Raises:
            LibraryError: As in `add`; or an attempt names a run that is neither given nor in the library.
        """
        given = list(trajectories)
        replayed = [_hidden(trajectory) for trajectory in given]
        ids = {before.id: after.id for before, after in zip(given, replayed, strict=True)}
        repair = _hidden_repair(repair, ids)
        _check_repair(repair)
        for trajectory in replayed:
            _check_trajectory(trajectory)

        def write(connection: sa.Connection) -> None:
            _add(connection, replayed, [])
            if _insert(connection, REPAIRS, _repair_row(repair)) and repair.attempts:
                connection.execute(ATTEMPTS.insert(), _attempt_rows(repair))

        self._write(write)

    def add_unfinished(self, unfinished: Unfinished) -> None:
        """Note that a run did not end; a log, to which every try adds.

        Raises:
            LibraryError: The database failed.
        """
        row = {**asdict(unfinished), "created_at": unfinished.created_at.isoformat()}
        self._write(lambda connection: connection.execute(UNFINISHED.insert(), row))

    # Reading

    def get(self, id: str) -> Trajectory:
        """The trajectory with this id.

        Raises:
            LibraryError: There is none.
        """
        for trajectory in self._stream(TRAJECTORIES, [TRAJECTORIES.c.id == id], _load_trajectories):
            return trajectory
        raise LibraryError(
            f"The library {self.url!r} has no trajectory {id!r}. Check the id, and that this is the library it is from."
        )

    def find(self, prefix: str) -> Trajectory:
        """The trajectory whose id begins like this.

        Args:
            prefix: Of an id; as much of it as tells one trajectory from all others.

        Raises:
            LibraryError: There is none, or more than one.
        """
        stored = escaped_name(prefix)
        begins_so = sa.func.substr(sa.cast(TRAJECTORIES.c.id, sa.Text), 1, len(stored)) == stored
        query = sa.select(TRAJECTORIES.c.id).where(begins_so)
        with self._reading() as connection:
            ids = list(connection.execute(query.order_by(TRAJECTORIES.c.id).limit(_SHOWN_IDS + 1)).scalars())
        if len(ids) > 1 and prefix not in ids:
            shown = ", ".join(repr(id) for id in ids[:_SHOWN_IDS]) + (" and others" if len(ids) > _SHOWN_IDS else "")
            raise LibraryError(f"More than one trajectory begins with {prefix!r}: {shown}. Give more of the id.")
        return self.get(prefix if not ids or prefix in ids else ids[0])

    def example(self, key: str) -> dspy.Example:
        """The example with this key, its inputs marked, its values equal to those that were added.

        Raises:
            LibraryError: It was never given to `add`.
            UnreadableValueError: A value is of a class that this process has not used yet.
        """
        inputs, labels = self.plain_example(key)
        return dspy.Example(from_plain({**inputs, **labels})).with_inputs(*inputs)

    def plain_example(self, key: str) -> tuple[Values, Values]:
        """Inputs and labels of the example with this key, as plain values; see `sirius_dspy.plain`.

        Raises:
            LibraryError: It was never given to `add`.
        """
        with self._reading() as connection:
            row = connection.execute(sa.select(EXAMPLES).where(EXAMPLES.c.key == key)).one_or_none()
        if row is None:
            raise LibraryError(
                f"The library {self.url!r} has no example {key!r}. Pass examples to `add`, or look the key up in the "
                "dataset with `example_key`."
            )
        return row.inputs, row.labels

    def trajectories(self, **filters: Unpack[Filters]) -> Iterator[Trajectory]:
        """Stream the trajectories that match, in order of insertion; see `Filters`."""
        return self._stream(TRAJECTORIES, _conditions(filters), _load_trajectories)

    def entries(self, *, limit: int | None = None, offset: int = 0, **filters: Unpack[Filters]) -> Iterator[Entry]:
        """Stream the trajectories that match without their steps, in order of insertion.

        Args:
            limit: At most so many; `None` is all.
            offset: Matches to skip.
            **filters: See `Filters`.
        """
        found = self._stream(TRAJECTORIES, _conditions(filters), _load_entries, skip=offset)
        return islice(found, limit)

    def repairs(
        self, *, run: str | None = None, iteration: int | None = None, parent: str | None = None
    ) -> Iterator[Repair]:
        """Stream the repairs, in order of insertion.

        Args:
            run: Id of a compile.
            iteration: Of a compile.
            parent: Id of the failed trajectory.
        """
        wanted = {"run": run, "iteration": iteration, "parent": parent}
        conditions = [REPAIRS.c[name] == value for name, value in wanted.items() if value is not None]
        return self._stream(REPAIRS, conditions, _load_repairs)

    def unfinished(self, *, run: str | None = None, iteration: int | None = None) -> Iterator[Unfinished]:
        """Stream the runs that did not end, in the order in which they were noted.

        Those that ended in a later try are among them: each of these has a trajectory or a repair as well.

        Args:
            run: Id of a compile.
            iteration: Of a compile.
        """
        wanted = {"run": run, "iteration": iteration}
        conditions = [UNFINISHED.c[name] == value for name, value in wanted.items() if value is not None]
        return self._stream(UNFINISHED, conditions, _load_unfinished)

    def pairs(
        self, *, threshold: float, run: str | None = None, iteration: int | None = None
    ) -> Iterator[tuple[Trajectory, Trajectory]]:
        """Stream (failed, repaired) runs of one example, for preference learning.

        Args:
            threshold: Least reward of a success. The first of a pair did not succeed, the second did.
            run: Of the repaired trajectory.
            iteration: Of the repaired trajectory.
        """
        failed = TRAJECTORIES.alias()
        is_failure = sa.or_(failed.c.reward < float(threshold), failed.c.failure.is_not(None))
        parent_failed = sa.exists().where(failed.c.id == TRAJECTORIES.c.parent, is_failure)
        conditions = _conditions({"run": run, "iteration": iteration, "min_reward": threshold})
        return self._stream(TRAJECTORIES, [*conditions, parent_failed], _load_pairs)

    def count(self, **filters: Unpack[Filters]) -> int:
        """How many trajectories match; see `Filters`."""
        query = sa.select(sa.func.count()).select_from(TRAJECTORIES).where(*_conditions(filters))
        with self._reading() as connection:
            return connection.execute(query).scalar_one()

    def stats(self, *, threshold: float) -> tuple[LibraryStats, ...]:
        """What is there, by run, iteration and origin.

        Args:
            threshold: Least reward of a success.
        """
        with self._reading() as connection:
            totals = connection.execute(_totals_query(threshold)).all()
            num_steps: dict[tuple[Any, ...], dict[str, int]] = defaultdict(dict)
            for *group, predictor, number in connection.execute(_steps_query()):
                num_steps[tuple(group)][predictor] = number
        return tuple(_stats(row, num_steps[row.run, row.iteration, row.origin]) for row in totals)

    def _stream(
        self,
        table: sa.Table,
        conditions: Sequence[sa.ColumnElement[bool]],
        load: Callable[[sa.Connection, Rows], list[T]],
        *,
        skip: int = 0,
    ) -> Iterator[T]:
        """Read a table page by page, each in a transaction of its own; the first `skip` matches are left out.

        One long transaction would keep SQLite from ever shrinking its write-ahead log, and a reader that is left half
        way would keep a connection. Going on after the last number read costs the same on every page, unlike OFFSET.
        """
        with self._reading() as connection:
            last = connection.scalar(sa.select(sa.func.max(table.c.number))) or 0
            seen = self._number_before(connection, table, conditions, skip) if skip else 0
        full = True
        while full:
            page = sa.select(table).where(table.c.number > seen, table.c.number <= last, *conditions)
            with self._reading() as connection:
                rows = connection.execute(page.order_by(table.c.number).limit(PAGE)).all()
                values = load(connection, rows)
            yield from values
            full = len(rows) == PAGE
            seen = rows[-1].number if rows else last

    @staticmethod
    def _number_before(
        connection: sa.Connection, table: sa.Table, conditions: Sequence[sa.ColumnElement[bool]], skip: int
    ) -> int:
        """The number of the last of `skip` matches; of fewer, the last number of all."""
        query = sa.select(table.c.number).where(*conditions).order_by(table.c.number).offset(skip - 1).limit(1)
        found = connection.scalar(query)
        if found is None:
            found = connection.scalar(sa.select(sa.func.max(table.c.number))) or 0
        return int(found)

    def num_bytes(self) -> int:
        """Bytes on disk, indexes included."""
        with self._reading() as connection:
            if connection.dialect.name == "sqlite":
                pages = connection.execute(sa.text("PRAGMA page_count")).scalar_one()
                return int(pages * connection.execute(sa.text("PRAGMA page_size")).scalar_one())
            sizes = [sa.func.pg_total_relation_size(table.name) for table in METADATA.sorted_tables]
            return sum(map(int, connection.execute(sa.select(*sizes)).one()))

    # Exporting

    def to_dataset(self, *, cache_dir: str | Path | None = None, **filters: Unpack[Filters]) -> datasets.Dataset:
        """A Hugging Face dataset with one row per step of the trajectories that match, on disk, not in memory.

        Inputs, outputs, predictions and failures are JSON text, since their fields differ between predictors.

        Args:
            cache_dir: Where `datasets` keeps its Arrow files; by default its own cache.
            **filters: See `Filters`.
        """
        import datasets

        if next(_step_records(self, filters), None) is None:  # `from_generator` cannot make an empty one
            return datasets.Dataset.from_dict({name: [] for name in STEP_COLUMNS}, features=_step_features())
        return datasets.Dataset.from_generator(
            _step_records,
            features=_step_features(),
            cache_dir=None if cache_dir is None else str(cache_dir),
            # `datasets` serves from its cache what equal arguments made, so they have to change when the library grows.
            gen_kwargs={"library": self, "filters": filters, "state": self._state()},
        )

    def to_parquet(self, path: str | Path, **filters: Unpack[Filters]) -> int:
        """Write the rows of `to_dataset` into one Parquet file, which appears when it is complete.

        Returns:
            The number of rows.
        """
        import pyarrow
        import pyarrow.parquet

        schema = _step_features().arrow_schema
        num_rows = 0
        with _whole_file(path) as partial, pyarrow.parquet.ParquetWriter(partial, schema) as writer:
            for batch in _batches(_step_records(self, filters)):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))
                num_rows += len(batch)
        return num_rows

    def to_jsonl(self, path: str | Path, **filters: Unpack[Filters]) -> int:
        """Write the trajectories that match, one per line, into a file that appears when it is complete.

        Each line is `Trajectory.to_dict` and the id, so `Trajectory.from_dict` of all but the id gives it back.

        Returns:
            The number of lines.
        """
        num_lines = 0
        with _whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            for trajectory in self.trajectories(**filters):
                file.write(json.dumps({"id": trajectory.id, **trajectory.to_dict()}) + "\n")
                num_lines += 1
        return num_lines

    def _state(self) -> str:
        """Changes with every trajectory that is added; no two libraries share one."""
        with self._reading() as connection:
            last = connection.scalar(sa.select(sa.func.max(TRAJECTORIES.c.number)))
        return f"{self.library_id}-{last}"

    # Checking

    def verify(self, *, run: str | None = None) -> list[str]:
        """Check the file itself, every reference, and every content hash.

        Args:
            run: Check the hashes of this compile's rows only: about 3 s for 10,000 trajectories of three steps.

        Returns:
            The problems as sentences; empty if all is well.

        Raises:
            LibraryError: The database cannot be reached, or is of a newer version.
        """
        examples = [self._check_examples] if run is None else []
        problems: list[str] = []
        for check in (self._check_file, self._check_references, *examples, lambda: self._check_hashes(run)):
            try:
                problems += check()
            except LibraryDamagedError as error:
                problems.append(str(error))
        return list(dict.fromkeys(problems))

    def verify_rows(self, path: str | Path) -> list[str]:
        """Prove a file of training rows: each prompt is the request that was sent in the run that the row is from.

        Args:
            path: What a compile wrote, `training/iteration-N/AGENT.jsonl`; `AGENT.sources.jsonl` is beside it.

        Returns:
            The problems in words; empty if all is well. Rows of a teacher with other signatures have no request of
            their own in the library, and are only counted as whole.

        Raises:
            LibraryError: A file cannot be read, or the database cannot be reached.
        """
        rows, sources = _json_lines(Path(path)), _json_lines(Path(path).with_suffix(".sources.jsonl"))
        if len(rows) != len(sources):
            return [f"{str(path)!r} has {len(rows)} rows, and there are sources of {len(sources)}."]
        problems = []
        for number, (row, source) in enumerate(zip(rows, sources, strict=True), start=1):
            if problem := self._row_problem(row, source):
                problems.append(f"Row {number} of {str(path)!r} {problem}")
        return problems

    def _row_problem(self, row: Any, source: Any) -> str:
        try:
            messages, row_id, request = row["messages"], source["row"], source["request"]
            query = sa.select(STEPS.c.request).where(
                STEPS.c.trajectory == source["trajectory"], STEPS.c.predictor == source["predictor"]
            )
            if digest(messages) != row_id:
                return "is not the one that was written."
            if request and text_digest(prompt_text(messages[:-1])) != request:
                return "has another prompt than the one that was sent."
        except (KeyError, TypeError, AttributeError) as error:
            return f"cannot be read: {type(error).__name__}: {error}"
        with self._reading() as connection:
            sent = set(connection.scalars(query))
        if not sent:
            return f"names the run {source['trajectory']!r}, which the library does not have."
        return "" if not request or request in sent else "has a prompt that was not sent in its run."

    def check(self, library_id: str, run: str) -> None:
        """See, before a compile goes on, that this is the library that it began with, and that its runs are whole.

        Args:
            library_id: Of the library that the compile began with.
            run: Id of the compile.

        Raises:
            LibraryDamagedError: The library was emptied, or some of its rows were changed.
            LibraryError: It is another library, or is gone.
        """
        path = Path(str(self._url.database))
        if self._url.get_backend_name() == "sqlite" and not path.is_file():
            raise LibraryError(f"The library {self.url!r}, with which the compile began, is gone. {_RESTORE}")
        _check_not_empty(self._url)
        if self.library_id != library_id:
            raise LibraryError(
                f"The library {self.url!r} is not the one that the compile began with: its id is {self.library_id!r}, "
                f"expected {library_id!r}, so the runs that were paid for are not there. {_RESTORE}"
            )
        if problems := self.verify(run=run):
            more = f" and {len(problems) - 1} more problems, which `verify()` lists" if len(problems) > 1 else ""
            raise LibraryDamagedError(f"The library {self.url!r} is damaged: {problems[0]}{more}. {_RESTORE}")

    def _check_file(self) -> list[str]:
        with self._reading() as connection:
            if connection.dialect.name != "sqlite":
                return []  # a server looks after its own files
            found = connection.execute(sa.text("PRAGMA integrity_check")).scalars().all()
        return [f"SQLite: {problem}" for problem in found if problem != "ok"]

    def _check_references(self) -> list[str]:
        problems = []
        for table in METADATA.sorted_tables:
            for key in table.foreign_keys:
                here, there = key.parent, key.column.table.alias()
                dangling = here.is_not(None) & ~sa.exists().where(there.c[key.column.name] == here)
                with self._reading() as connection:
                    missing = connection.scalars(sa.select(here).distinct().where(dangling)).all()
                problems += [
                    f"`{table.name}.{here.name}` names {value!r}, which `{key.column.table.name}` does not have."
                    for value in missing
                ]
        return problems

    def _check_examples(self) -> list[str]:
        with self._reading() as connection:
            rows = connection.execution_options(yield_per=PAGE).execute(sa.select(EXAMPLES))
            changed = [row.key for row in rows if digest({"inputs": row.inputs, "labels": row.labels}) != row.key]
        return [f"The content of example {key!r} does not match its key." for key in changed]

    def _check_hashes(self, run: str | None) -> list[str]:
        """Recompute the ids of trajectories and repairs, and go on after rows that cannot be read."""
        problems = []
        for table in (TRAJECTORIES, REPAIRS):
            with self._reading() as connection:
                last = connection.scalar(sa.select(sa.func.max(table.c.number))) or 0
            for first in range(1, last + 1, PAGE):
                problems += self._check_rows(table, range(first, min(first + PAGE, last + 1)), run)
        return problems

    def _check_rows(self, table: sa.Table, numbers: range, run: str | None) -> list[str]:
        conditions: list[sa.ColumnElement[bool]] = [table.c.number.between(numbers.start, numbers.stop - 1)]
        if run is not None:
            conditions.append(table.c.run == run)
        try:
            with self._reading() as connection:
                rows = connection.execute(sa.select(table).where(*conditions).order_by(table.c.number)).all()
                found = _ids(connection, table, rows)
        except LibraryDamagedError as error:
            if len(numbers) == 1:
                return [f"Row {numbers.start} of `{table.name}`: {error}"]
            middle = len(numbers) // 2  # one bad row must not hide the others of its page
            return self._check_rows(table, numbers[:middle], run) + self._check_rows(table, numbers[middle:], run)
        return [
            f"The content of {row.id!r} in `{table.name}` has the hash {actual!r}: it was changed, or is not whole."
            for row, actual in zip(rows, found, strict=True)
            if actual != row.id
        ]

    # The database

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """A transaction in which rows are read and made into values again."""
        try:
            with reporting(self._url), self._open().begin() as connection:
                yield connection
        except (ValueError, TypeError, KeyError) as error:
            raise LibraryDamagedError(
                f"The library {self.url!r} holds a value that sirius_dspy did not write: {error}. Run `verify()` to "
                "find the rows, and restore the library from a backup."
            ) from error

    def _write(self, work: Callable[[sa.Connection], T]) -> T:
        with reporting(self._url), self._open().execution_options(writes=True).begin() as connection:
            return work(connection)

    def _open(self) -> sa.Engine:
        with self._lock:
            if self._engine is not None and self._pid != os.getpid():
                self._engine.dispose(close=False)  # the parent process goes on using these connections
                self._engine = None
            if self._engine is None:
                self._engine, self._pid = open_engine(self._url), os.getpid()
            return self._engine


def _check_not_empty(url: sa.URL) -> None:
    """Refuse a SQLite file that lost its content, which would be taken for a new library.

    Raises:
        LibraryDamagedError: It has no content.
    """
    if url.get_backend_name() == "sqlite" and Path(str(url.database)).stat().st_size == 0:
        raise LibraryDamagedError(f"The library {public_url(url)!r} is empty: it was cut short to nothing. {_RESTORE}")


def _json_lines(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise LibraryError(f"The training file {str(path)!r} cannot be read: {error}") from error


# Values to rows


def _hidden(trajectory: Trajectory) -> Trajectory:
    """The trajectory without credentials; itself, if it has none."""
    record = trajectory.to_dict()
    hidden = hide(record)
    return trajectory if hidden is record else Trajectory.from_dict(hidden)


def _hidden_repair(repair: Repair, ids: Mapping[str, str]) -> Repair:
    """The repair without credentials.

    Args:
        repair: What was tried.
        ids: Of its replayed runs, as they were given, to those of the runs that are stored.
    """
    record = hide(repair.to_dict())
    attempts = [{**item, "trajectory": ids.get(item["trajectory"], item["trajectory"])} for item in record["attempts"]]
    return Repair.from_dict({**record, "attempts": attempts})


def _check_storable(kind: str, record: Any, identify: Callable[[Any], str]) -> None:
    """Refuse what would not read back under its own id.

    Args:
        kind: For the message.
        record: What goes into the database.
        identify: The id of a record.

    Raises:
        LibraryError: Not JSON; NaN; or a text that JSON changes (a surrogate pair in two halves).
    """
    try:
        unchanged = identify(json.loads(json.dumps(record, allow_nan=False))) == identify(record)
    except (TypeError, ValueError) as error:
        raise LibraryError(
            f"A {kind} holds a value that is not JSON: {error}. Make its values with `to_plain`, its numbers finite."
        ) from error
    if not unchanged:
        raise LibraryError(
            f"The {kind} {identify(record)!r} would read back as another one, because JSON changes one of its texts: "
            "a surrogate pair is in two halves. Join them: `text.encode('utf-16', 'surrogatepass').decode('utf-16')`."
        )


def _check_trajectory(trajectory: Trajectory) -> None:
    _check_storable("trajectory", trajectory.to_dict(), lambda record: Trajectory.from_dict(record).id)


def _check_repair(repair: Repair) -> None:
    _check_storable("repair", repair.to_dict(), lambda record: _repair_id(Repair.from_dict(record)))


def _check_example(example: dspy.Example) -> None:
    _check_storable("example", _content(example), digest)


def _content(example: dspy.Example) -> dict[str, Any]:
    """What `example_key` is the hash of."""
    return {"inputs": to_plain(example.inputs()), "labels": to_plain(example.labels())}


def _repair_id(repair: Repair) -> str:
    """Content hash; times and prices do not count, and the rewards are those of the replayed runs."""
    fields = [name for name in _ATTEMPT_FIELDS if name != "reward"]
    tries = [[getattr(attempt, name) for name in fields] for attempt in repair.attempts]
    return digest([repair.parent, repair.run, repair.iteration, tries])


def _add(connection: sa.Connection, new: Iterable[Trajectory], made_from: Iterable[dspy.Example]) -> int:
    for example in made_from:
        row = _example_row(example)
        if hide(row) is row:  # its key is a hash of its content, so it is stored as it is, or not at all
            _insert(connection, EXAMPLES, row)
    added = 0
    for trajectory in new:
        if _insert(connection, TRAJECTORIES, _trajectory_row(trajectory)):
            added += 1
            for id, prompt in {step.request: step.prompt for step in trajectory.steps if step.prompt}.items():
                _insert(connection, REQUESTS, {"id": id, "prompt": json.loads(str(prompt))})
            if trajectory.steps:
                connection.execute(STEPS.insert(), _step_rows(trajectory))
    return added


def _insert(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless its id is there; return whether it was inserted."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table).on_conflict_do_nothing().inline().execution_options(preserve_rowcount=True)
    return connection.execute(statement, row).rowcount == 1


def _example_row(example: dspy.Example) -> dict[str, Any]:
    return {"key": example_key(example), **_content(example)}


# Fields that a column of the same name holds as they are.
_TRAJECTORY_FIELDS = (
    "example_key",
    "prediction",
    "program",
    "run",
    "iteration",
    "sample",
    "seed",
    "origin",
    "parent",
    "edited",
    "seconds",
)
_STEP_FIELDS = (
    "predictor",
    "occurrence",
    "inputs",
    "outputs",
    "lm",
    "source",
    "seconds",
    "started",
    "ended",
    "num_demos",
    "signature",
    "finish",
)
_ATTEMPT_FIELDS = (
    "position",
    "predictor",
    "verdict",
    "feedback",
    "regenerated",
    "rephrased",
    "reward",
    "trajectory",
    "detail",
)


def _trajectory_row(trajectory: Trajectory) -> dict[str, Any]:
    return {
        **{name: getattr(trajectory, name) for name in _TRAJECTORY_FIELDS},
        **asdict(trajectory.usage),
        "id": trajectory.id,
        "reward": float(trajectory.reward),
        "reward_json": trajectory.reward,
        "rewards": dict(trajectory.rewards),
        "failure": trajectory.failure and asdict(trajectory.failure),
        "created_at": trajectory.created_at.isoformat(),
    }


def _step_rows(trajectory: Trajectory) -> list[dict[str, Any]]:
    return [
        {
            **{name: getattr(step, name) for name in _STEP_FIELDS},
            **asdict(step.usage),
            "trajectory": trajectory.id,
            "position": position,
            "others": list(step.others),
            "failure": step.failure and asdict(step.failure),
            "request": step.request,
        }
        for position, step in enumerate(trajectory.steps)
    ]


def _repair_row(repair: Repair) -> dict[str, Any]:
    return {
        "id": _repair_id(repair),
        "parent": repair.parent,
        "run": repair.run,
        "iteration": repair.iteration,
        "seconds": repair.seconds,
    }


def _attempt_rows(repair: Repair) -> list[dict[str, Any]]:
    return [
        {
            **{name: getattr(attempt, name) for name in _ATTEMPT_FIELDS},
            **asdict(attempt.usage),
            "repair": _repair_id(repair),
            "number": number,
        }
        for number, attempt in enumerate(repair.attempts)
    ]


# Rows to values


def _load_trajectories(connection: sa.Connection, rows: Rows) -> list[Trajectory]:
    joined = STEPS.outerjoin(REQUESTS, STEPS.c.request == REQUESTS.c.id)
    query = sa.select(STEPS, REQUESTS.c.prompt).select_from(joined)
    query = query.where(STEPS.c.trajectory.in_([row.id for row in rows]))
    found: dict[str, list[Step]] = defaultdict(list)
    for row in connection.execute(query.order_by(STEPS.c.trajectory, STEPS.c.position)):
        found[row.trajectory].append(_step(row._mapping))
    return [_trajectory(row._mapping, found[row.id]) for row in rows]


def _load_entries(connection: sa.Connection, rows: Rows) -> list[Entry]:
    names = ("id", "run", "iteration", "sample", "origin", "parent", "edited", "example_key", "prediction", "seconds")
    return [
        Entry(
            **{name: row._mapping[name] for name in names},
            reward=row.reward_json,
            failure=row.failure and Failure(**row.failure),
            usage=_usage(row._mapping),
        )
        for row in rows
    ]


def _load_pairs(connection: sa.Connection, rows: Rows) -> list[tuple[Trajectory, Trajectory]]:
    parents = {row.parent for row in rows}
    found = connection.execute(sa.select(TRAJECTORIES).where(TRAJECTORIES.c.id.in_(parents))).all()
    failed = {trajectory.id: trajectory for trajectory in _load_trajectories(connection, found)}
    repaired = _load_trajectories(connection, rows)
    return [(failed[row.parent], trajectory) for row, trajectory in zip(rows, repaired, strict=True)]


def _load_unfinished(connection: sa.Connection, rows: Rows) -> list[Unfinished]:
    def load(row: sa.Row[Any]) -> Unfinished:
        values = {name: value for name, value in row._mapping.items() if name != "number"}
        return Unfinished(**{**values, "created_at": datetime.fromisoformat(row.created_at)})

    return [load(row) for row in rows]


def _load_repairs(connection: sa.Connection, rows: Rows) -> list[Repair]:
    query = sa.select(ATTEMPTS).where(ATTEMPTS.c.repair.in_([row.id for row in rows]))
    found: dict[str, list[Attempt]] = defaultdict(list)
    for row in connection.execute(query.order_by(ATTEMPTS.c.repair, ATTEMPTS.c.number)):
        found[row.repair].append(_attempt(row._mapping))
    return [
        Repair(
            parent=row.parent,
            attempts=tuple(found[row.id]),
            run=row.run,
            iteration=row.iteration,
            seconds=row.seconds,
        )
        for row in rows
    ]


def _ids(connection: sa.Connection, table: sa.Table, rows: Rows) -> list[str]:
    """The ids that the content of the rows has now."""
    if table is REPAIRS:
        return [_repair_id(repair) for repair in _load_repairs(connection, rows)]
    return [trajectory.id for trajectory in _load_trajectories(connection, rows)]


def _trajectory(row: Mapping[Any, Any], its_steps: Sequence[Step]) -> Trajectory:
    return Trajectory(
        **{name: row[name] for name in _TRAJECTORY_FIELDS},
        steps=tuple(its_steps),
        reward=row["reward_json"],
        rewards=row["rewards"],
        failure=row["failure"] and Failure(**row["failure"]),
        created_at=datetime.fromisoformat(row["created_at"]),
    )


def _step(row: Mapping[Any, Any]) -> Step:
    return Step(
        **{name: row[name] for name in _STEP_FIELDS},
        others=tuple(row["others"]),
        prompt=row["prompt"] and canonical(row["prompt"]),
        failure=row["failure"] and Failure(**row["failure"]),
        usage=_usage(row),
    )


def _attempt(row: Mapping[Any, Any]) -> Attempt:
    return Attempt(**{name: row[name] for name in _ATTEMPT_FIELDS}, usage=_usage(row))


def _usage(row: Mapping[Any, Any]) -> Usage:
    return Usage(int(row["calls"]), int(row["prompt_tokens"]), int(row["completion_tokens"]))


# Queries


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(values)
    while batch := list(islice(remaining, BATCH)):
        yield batch


def _conditions(filters: Filters) -> list[sa.ColumnElement[bool]]:
    unknown = filters.keys() - Filters.__annotations__.keys()
    if unknown:
        raise TypeError(f"Unknown filters {sorted(unknown)!r}. Expected some of {list(Filters.__annotations__)!r}.")
    wanted: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    conditions = []
    if "min_reward" in wanted:
        conditions += [TRAJECTORIES.c.reward >= float(wanted.pop("min_reward")), TRAJECTORIES.c.failure.is_(None)]
    if "max_reward" in wanted:
        conditions.append(TRAJECTORIES.c.reward <= float(wanted.pop("max_reward")))
    if "below" in wanted:
        is_below = TRAJECTORIES.c.reward < float(wanted.pop("below"))
        conditions.append(sa.or_(is_below, TRAJECTORIES.c.failure.is_not(None)))
    if "predictor" in wanted:
        conditions.append(_called(wanted.pop("predictor")))
    if "origin" in wanted:
        origin = wanted.pop("origin")
        conditions.append(TRAJECTORIES.c.origin.in_([origin] if isinstance(origin, str) else list(origin)))
    return conditions + [TRAJECTORIES.c[name] == value for name, value in wanted.items()]


def _called(predictor: str | Collection[str]) -> sa.ColumnElement[bool]:
    """Whether a step of the trajectory is of the predictor, or of one of several."""
    names = [predictor] if isinstance(predictor, str) else list(predictor)
    return sa.exists().where(STEPS.c.trajectory == TRAJECTORIES.c.id, STEPS.c.predictor.in_(names))


_GROUP = (TRAJECTORIES.c.run, TRAJECTORIES.c.iteration, TRAJECTORIES.c.origin)


def _totals_query(threshold: float) -> sa.Select[Any]:
    columns = TRAJECTORIES.c
    is_success = sa.and_(columns.reward >= float(threshold), columns.failure.is_(None))
    earned = sa.case((columns.failure.is_(None), columns.reward))  # null, and so left out, where the run broke
    return (
        sa.select(
            *_GROUP,
            sa.func.count().label("number"),
            sa.func.sum(sa.case((is_success, 1), else_=0)).label("num_successes"),
            sa.func.count(earned).label("num_ended"),
            sa.func.sum(earned).label("total_reward"),
            sa.func.min(earned).label("lowest_reward"),
            *(sa.func.sum(columns[name]).label(name) for name in ("calls", "prompt_tokens", "completion_tokens")),
        )
        .group_by(*_GROUP)
        .order_by(sa.func.min(columns.number))
    )


def _steps_query() -> sa.Select[Any]:
    group = (*_GROUP, STEPS.c.predictor)
    joined = TRAJECTORIES.join(STEPS, STEPS.c.trajectory == TRAJECTORIES.c.id)
    return sa.select(*group, sa.func.count()).select_from(joined).group_by(*group)


def _stats(row: sa.Row[Any], num_steps: Mapping[str, int]) -> LibraryStats:
    broken = row.number - row.num_ended
    standing = Standing(row.num_ended, broken, float(row.total_reward or 0), float(row.lowest_reward or 0))
    return LibraryStats(
        run=row.run,
        iteration=row.iteration,
        origin=row.origin,
        num_trajectories=row.number,
        num_successes=int(row.num_successes),  # PostgreSQL sums integers to a Decimal
        mean_reward=standing.mean(),
        usage=_usage(row._mapping),
        num_steps=dict(num_steps),
    )


# Exports


@contextmanager
def _whole_file(path: str | Path) -> Iterator[Path]:
    """A place to write to, which becomes `path` when all is written, and nothing otherwise."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


STEP_COLUMNS = {
    "trajectory": "string",
    "run": "string",
    "iteration": "int64",
    "sample": "int64",
    "seed": "int64",
    "origin": "string",
    "parent": "string",
    "edited": "int64",
    "example_key": "string",
    "program": "string",
    "reward": "float64",
    "agent_rewards": "string",
    "prediction": "string",
    "position": "int64",
    "predictor": "string",
    "occurrence": "int64",
    "lm": "string",
    "source": "string",
    "inputs": "string",
    "outputs": "string",
    "others": "string",
    "failure": "string",
    "taught": "bool",
    "num_demos": "int64",
    "prompt": "string",
    "finish": "string",
    "calls": "int64",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "seconds": "float64",
}
"""Columns of `to_dataset` and `to_parquet`, and their types. `taught`: the step may become a training row, which the
steps before a repaired one may not. JSON: `agent_rewards`, `prediction`, `inputs`, `outputs`, `others`, `failure`,
`prompt`."""


def _step_features() -> datasets.Features:
    import datasets

    return datasets.Features({name: datasets.Value(kind) for name, kind in STEP_COLUMNS.items()})


def _step_records(library: ExperienceLibrary, filters: Filters, state: str = "") -> Iterator[dict[str, Any]]:
    """One record per step; `state` only tells `datasets` that equal arguments may mean other rows."""
    for trajectory in library.trajectories(**filters):
        shared = _lineage(trajectory)
        taught = {id(step) for step in trajectory.taught_steps}
        for position, step in enumerate(trajectory.steps):
            yield {**shared, **_step_record(step), "position": position, "taught": id(step) in taught}


def _lineage(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "trajectory": trajectory.id,
        "run": escaped_name(trajectory.run),
        "iteration": trajectory.iteration,
        "sample": trajectory.sample,
        "seed": trajectory.seed,
        "origin": trajectory.origin,
        "parent": trajectory.parent,
        "edited": trajectory.edited,
        "example_key": escaped_name(trajectory.example_key),
        "program": escaped_name(trajectory.program),
        "reward": float(trajectory.reward),
        "agent_rewards": json.dumps(dict(trajectory.rewards)),
        "prediction": json.dumps(trajectory.prediction),
    }


def _step_record(step: Step) -> dict[str, Any]:
    return {
        "predictor": escaped_name(step.predictor),
        "occurrence": step.occurrence,
        "lm": escaped_name(step.lm),
        "source": step.source,
        "inputs": json.dumps(step.inputs),
        "outputs": None if step.outputs is None else json.dumps(step.outputs),
        "others": json.dumps(list(step.others)),
        "failure": step.failure and json.dumps(asdict(step.failure)),
        "num_demos": step.num_demos,
        "prompt": step.prompt,
        "finish": step.finish,
        "seconds": step.seconds,
        **asdict(step.usage),
    }
