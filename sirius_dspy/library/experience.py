"""The experience library: every run of every program, good or bad, with its lineage, in one database.

Identity is by content: a trajectory is stored under `Trajectory.id`, a repair under a hash of its attempts, so writing
twice stores once. Rows are only ever added. What a method added before it returned is on disk: killing the process
loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

import dspy
import sqlalchemy as sa

from sirius_dspy.errors import LibraryError
from sirius_dspy.library import export, lookup, queries, rows, stats, storable, verify, writing
from sirius_dspy.library.database import Database, last_number, read_library_id
from sirius_dspy.library.queries import Filters
from sirius_dspy.library.rows import Entry
from sirius_dspy.library.schema import REPAIRS, TRAJECTORIES, UNFINISHED
from sirius_dspy.library.stats import LibraryStats
from sirius_dspy.plain import from_plain
from sirius_dspy.running.unfinished import Unfinished
from sirius_dspy.trajectory import Repair, Trajectory, Values

if TYPE_CHECKING:
    import datasets


class ExperienceLibrary:
    """All trajectories and repairs, append-only, in SQLite or PostgreSQL.

    A handle is cheap: it opens its database on first use, may be shared by threads, and survives `fork`, `pickle` and
    `deepcopy`, after which it opens the database anew. Several processes may write; their transactions take turns.
    Readers see what was there when they began, in order of insertion, hold at most 100 trajectories at a time, and
    neither wait for writers nor keep them waiting.

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
        self._database = Database(url)

    @classmethod
    def existing(cls, where: str | Path | sa.URL) -> Self:
        """Open a library that exists; nothing is created.

        Args:
            where: As for the constructor. `sirius_dspy.open_library` also takes the folder of a compile.

        Raises:
            LibraryError: There is none.
        """
        library = cls(where)
        file = library._database.file
        if file is not None and not file.is_file():
            raise LibraryError(
                f"There is no library at {library.url!r}. Pass a SQLite file or a database URL, or open the folder of "
                "a compile with `sirius_dspy.open_library`."
            )
        verify.check_not_empty(library._database)
        return library

    @property
    def library_id(self) -> str:
        """The id that the library was given when it was made; no two libraries share it, and a copy keeps it."""
        return read_library_id(self._database)

    @property
    def url(self) -> str:
        """The database URL, without its password."""
        return self._database.public_url

    def __repr__(self) -> str:
        return f"ExperienceLibrary({self.url!r})"

    def __reduce__(self) -> tuple[type[Self], tuple[sa.URL]]:
        return type(self), (self._database.url,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        self._database.close()

    # Writing

    def add(self, trajectory: Trajectory, example: dspy.Example | None = None) -> str:
        """Store a trajectory, and the example it was made from, unless they are there.

        Args:
            trajectory: Its `parent`, if it has one, is in the library.
            example: Pass it so that the library can be read without the dataset.

        Returns:
            The trajectory's id.

        Raises:
            LibraryError: A value is not plain JSON, the parent is absent, the example is another one than the
                trajectory's, or the database failed.
        """
        stored, examples = storable.storable_run(trajectory, example)
        self._add([stored], examples)
        return stored.id

    def add_runs(self, trajectories: Sequence[Trajectory], examples: Sequence[dspy.Example]) -> list[str]:
        """Store trajectories that ended together with the examples they were made from, in one transaction.

        Args:
            trajectories: As for `add`.
            examples: One for each trajectory.

        Returns:
            The trajectories' ids.

        Raises:
            LibraryError: As for `add`. A trajectory that cannot be stored does not keep the others from being stored.
        """
        stored, refused = storable.split_storable(zip(trajectories, examples, strict=True))
        self._add([trajectory for trajectory, _ in stored], [row for _, found in stored for row in found])
        if refused:
            raise refused[0]
        return [trajectory.id for trajectory, _ in stored]

    def add_all(self, trajectories: Iterable[Trajectory], examples: Iterable[dspy.Example] = ()) -> int:
        """Store many trajectories, 5,000 in a transaction; for imports.

        Args:
            trajectories: Parents come before their repairs, or in the same batch. One batch is held in memory.
            examples: The examples that the trajectories were made from.

        Returns:
            The number of trajectories that were new.

        Raises:
            LibraryError: As for `add`; the batches before the one that failed are stored.
        """
        for batch in writing.split_batches(examples):
            self._add([], storable.example_rows(batch))
        return sum(
            self._add([storable.storable_trajectory(trajectory) for trajectory in batch], [])
            for batch in writing.split_batches(trajectories, writing.TRANSACTION)
        )

    def add_repair(self, repair: Repair, trajectories: Iterable[Trajectory]) -> None:
        """Store a repair and its replayed runs, all or none.

        Args:
            repair: Its `parent` is in the library.
            trajectories: The run of every attempt that names one, successful or not.

        Raises:
            LibraryError: As for `add`; or an attempt names a run that is neither given nor in the library.
        """
        stored = {trajectory.id: storable.storable_trajectory(trajectory) for trajectory in trajectories}
        hidden = storable.hide_repair(repair, {id: trajectory.id for id, trajectory in stored.items()})
        storable.check_repair(hidden)

        def write(connection: sa.Connection) -> None:
            writing.insert_trajectories(connection, stored.values())
            writing.insert_repair(connection, hidden)

        self._database.write(write)

    def add_unfinished(self, unfinished: Unfinished) -> None:
        """Note that a run did not end; every try adds a row to this log.

        Raises:
            LibraryError: The database failed.
        """
        row = rows.unfinished_row(unfinished)
        self._database.write(lambda connection: connection.execute(UNFINISHED.insert(), row))

    def _add(self, trajectories: Sequence[Trajectory], examples: Sequence[rows.Row]) -> int:
        def write(connection: sa.Connection) -> int:
            writing.insert_examples(connection, examples)
            return writing.insert_trajectories(connection, trajectories)

        return self._database.write(write)

    # Reading

    def get(self, id: str) -> Trajectory:
        """Return the trajectory with this id.

        Raises:
            LibraryError: There is none.
        """
        conditions = [TRAJECTORIES.c.id == id]
        for trajectory in queries.stream(self._database, TRAJECTORIES, conditions, rows.load_trajectories):
            return trajectory
        raise LibraryError(
            f"The library {self.url!r} has no trajectory {id!r}. Check the id, and that this is the library it is from."
        )

    def find(self, prefix: str) -> Trajectory:
        """Return the trajectory whose id begins with a prefix.

        Args:
            prefix: As much of the id as tells the trajectory from all others.

        Raises:
            LibraryError: There is none, or more than one.
        """
        return self.get(lookup.find_id(self._database, prefix))

    def example(self, key: str) -> dspy.Example:
        """Return the example with this key, its inputs marked, its values equal to those that were added.

        Raises:
            LibraryError: It was never passed to `add`.
            UnreadableValueError: A value is of a class that this process has not used yet.
        """
        inputs, labels = self.plain_example(key)
        return dspy.Example(from_plain({**inputs, **labels})).with_inputs(*inputs)

    def plain_example(self, key: str) -> tuple[Values, Values]:
        """Return the inputs and labels of the example with this key, as plain values; see `sirius_dspy.plain`.

        Raises:
            LibraryError: It was never passed to `add`.
        """
        return lookup.read_example(self._database, key)

    def trajectories(self, **filters: Unpack[Filters]) -> Iterator[Trajectory]:
        """Stream the trajectories that match, in order of insertion; see `Filters`."""
        return queries.stream(self._database, TRAJECTORIES, queries.build_conditions(filters), rows.load_trajectories)

    def entries(self, *, limit: int | None = None, offset: int = 0, **filters: Unpack[Filters]) -> Iterator[Entry]:
        """Stream the trajectories that match without their steps, in order of insertion.

        Args:
            limit: Maximum number of entries; `None` for all.
            offset: Number of matches to skip.
            **filters: See `Filters`.
        """
        conditions = queries.build_conditions(filters)
        entries = queries.stream(self._database, TRAJECTORIES, conditions, rows.load_entries, skip=offset)
        return islice(entries, limit)

    def repairs(
        self, *, run: str | None = None, iteration: int | None = None, parent: str | None = None
    ) -> Iterator[Repair]:
        """Stream the repairs, in order of insertion.

        Args:
            run: Id of a compile.
            iteration: Iteration of a compile.
            parent: Id of the failed trajectory.
        """
        conditions = queries.equal_columns(REPAIRS, run=run, iteration=iteration, parent=parent)
        return queries.stream(self._database, REPAIRS, conditions, rows.load_repairs)

    def unfinished(self, *, run: str | None = None, iteration: int | None = None) -> Iterator[Unfinished]:
        """Stream the runs that did not end, in the order in which they were noted.

        Runs that ended in a later try are included: each of them has a trajectory or a repair as well.

        Args:
            run: Id of a compile.
            iteration: Iteration of a compile.
        """
        conditions = queries.equal_columns(UNFINISHED, run=run, iteration=iteration)
        return queries.stream(self._database, UNFINISHED, conditions, rows.load_unfinished)

    def pairs(
        self, *, threshold: float, run: str | None = None, iteration: int | None = None
    ) -> Iterator[tuple[Trajectory, Trajectory]]:
        """Stream pairs of a failed and a repaired run of one example, for preference learning.

        Args:
            threshold: Lowest reward of a success. The first run of a pair did not reach it, the second did.
            run: Compile of the repaired trajectory.
            iteration: Iteration of the repaired trajectory.
        """
        conditions = queries.build_conditions(
            {"run": run, "iteration": iteration, "origin": "repair", "min_reward": threshold}
        )
        conditions.append(queries.has_failed_parent(threshold))
        return queries.stream(self._database, TRAJECTORIES, conditions, rows.load_pairs)

    def count(self, **filters: Unpack[Filters]) -> int:
        """Return the number of trajectories that match; see `Filters`."""
        query = sa.select(sa.func.count()).select_from(TRAJECTORIES).where(*queries.build_conditions(filters))
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()

    def stats(self, *, threshold: float) -> tuple[LibraryStats, ...]:
        """Count what the library holds, by run, iteration and origin.

        Args:
            threshold: Lowest reward of a success.
        """
        with self._database.read() as connection:
            return stats.read_stats(connection, threshold)

    def num_bytes(self) -> int:
        """Return the size on disk in bytes, indexes included."""
        with self._database.read() as connection:
            return stats.read_size(connection)

    # Exporting

    def to_dataset(self, *, cache_dir: str | Path | None = None, **filters: Unpack[Filters]) -> datasets.Dataset:
        """Return a Hugging Face dataset with one row per step of the trajectories that match.

        It is on disk, not in memory. Inputs, outputs, predictions and failures are JSON text, since their fields differ
        between predictors.

        Args:
            cache_dir: Where `datasets` keeps its Arrow files; its own cache by default.
            **filters: See `Filters`.
        """
        with self._database.read() as connection:
            last = last_number(connection, TRAJECTORIES)
        state = f"{self.library_id}-{last}"  # changes with every trajectory; no two libraries share one
        return export.build_dataset(partial(self.trajectories, **filters), state, cache_dir)

    def to_parquet(self, path: str | Path, **filters: Unpack[Filters]) -> int:
        """Write the rows of `to_dataset` into one Parquet file, which appears when it is complete.

        Returns:
            The number of rows.
        """
        return export.write_parquet(partial(self.trajectories, **filters), path)

    def to_jsonl(self, path: str | Path, **filters: Unpack[Filters]) -> int:
        """Write the trajectories that match, one per line, into a file that appears when it is complete.

        Each line is `Trajectory.to_dict` with the id, so `Trajectory.from_dict` of all but the id returns it.

        Returns:
            The number of lines.
        """
        return export.write_jsonl(partial(self.trajectories, **filters), path)

    # Checking

    def verify(self, *, run: str | None = None) -> list[str]:
        """Check the file itself, every reference, and every content hash.

        Args:
            run: Check the hashes of this compile's rows only: about 3 s for 10,000 trajectories of three steps.

        Returns:
            The problems as sentences; empty if there are none.

        Raises:
            LibraryError: The database cannot be reached, or a newer version wrote it.
        """
        return verify.find_problems(self._database, run)

    def verify_rows(self, path: str | Path) -> list[str]:
        """Check a file of training rows: each prompt is the request that was sent in the run that the row is from.

        Args:
            path: A file that a compile wrote, `training/iteration-N/AGENT.jsonl`; `AGENT.sources.jsonl` is beside it.

        Returns:
            The problems as sentences; empty if there are none. Rows of a teacher with other signatures have no request
            of their own in the library; only their content is checked.

        Raises:
            LibraryError: A file cannot be read, or the database cannot be reached.
        """
        return verify.find_row_problems(self._database, Path(path))

    def check(self, library_id: str, run: str) -> None:
        """Check, before a compile continues, that it started with this library and that its runs are undamaged.

        Args:
            library_id: Id of the library that the compile started with.
            run: Id of the compile.

        Raises:
            LibraryDamagedError: The library was emptied, or some of its rows were changed.
            LibraryError: It is another library, or is gone.
        """
        verify.check_library(self._database, library_id, run)
