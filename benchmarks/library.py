"""What a library of many runs costs: how fast it grows and is read, and how much memory and disk that takes.

    python -m benchmarks.library [--sizes 10000,100000,1000000] [--url URL] [--only sqlite] [--no-checks] [--json FILE]

One library grows from size to size in a SQLite file, and in PostgreSQL where its binaries are found, or in the empty
database at `--url`. A run has three agents and about 2 kB of text, prompts included; there are 500 runs of each
example, and half of them succeed. At each size, runs are appended, read by id, listed, exported, curated, verified, and
a tenth of them is pruned. Exports and curation run in a process of their own, whose peak memory is compared with that
before they began. The peer is `INSERT` of equally many bytes as blobs with `executemany` in the same database, without
ids, indexes or checks.

Targets: 5,000 runs appended per second, and an agent's training set in less than 300 MB of extra memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.library_runs import ITERATIONS, build, make_run
from benchmarks.postgres import find_programs, running_server
from sirius_dspy import ExperienceLibrary
from sirius_dspy.library.prune import prune_library
from sirius_dspy.library.trl import TRLExport
from sirius_dspy.library.writing import TRANSACTION
from sirius_dspy.training.curate import Curator

SIZES = (10_000, 100_000, 1_000_000)
AGENT = "solver"
READS = 300
"""Runs that are added or read one by one."""
PEER_TRANSACTIONS = 4
MOST_WRITTEN = 3000
"""Runs that each of two writers adds, at most; a third of them are the same."""

Row = dict[str, float]
"""Name of a measure to its number."""

Work = Callable[[ExperienceLibrary, Path], int]
"""Makes a file in a folder, and returns the number of its rows."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure a library of many runs.")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="runs, comma-separated, in rising order")
    parser.add_argument("--url", help="an empty PostgreSQL database; by default the benchmark starts a server")
    parser.add_argument("--only", choices=("sqlite", "postgresql"), help="measure one of the two")
    parser.add_argument("--no-checks", action="store_true", help="neither verify nor prune, which takes longest")
    parser.add_argument("--json", type=Path, help="also write the numbers into this file")
    options = parser.parse_args(arguments)
    sizes = [int(size) for size in options.sizes.split(",")]
    tables: dict[str, list[Row]] = {}
    for name in ("sqlite", "postgresql"):
        if options.only in (None, name):
            with _open_database(name, options.url) as url:
                if url is not None:
                    tables[name] = measure(url, sizes, checks=not options.no_checks)
                    print(format_table(name, tables[name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"cores": os.cpu_count(), "measures": tables}, indent=1), encoding="utf-8")


@contextmanager
def _open_database(name: str, url: str | None) -> Iterator[str | None]:
    folder = Path(tempfile.mkdtemp(prefix="sirius-library-"))
    try:
        if name == "sqlite":
            yield f"sqlite:///{folder / 'library.sqlite'}"
        elif url is not None:
            yield url
        elif programs := find_programs():
            with running_server(programs, "shared_buffers=512MB", "max_wal_size=4GB") as started:
                yield started
        else:
            print("PostgreSQL is left out: `initdb` and `postgres` are not found, and there is no --url.")
            yield None
    finally:
        shutil.rmtree(folder)


def measure(url: str, sizes: Sequence[int], *, checks: bool = True) -> list[Row]:
    """Let a library grow, and measure it at each size.

    Args:
        url: Of an empty database.
        sizes: Numbers of runs, in rising order.
        checks: Also verify the library and prune it.
    """
    rows: list[Row] = []
    with ExperienceLibrary(url) as library:
        made = 0
        for size in sizes:
            row: Row = {"runs": size}
            first, made = made, made + size - library.count()
            for found in _measure_size(url, library, range(first, made), not rows):
                row |= _report(size, found)
            if checks:
                for found in _measure_checks(library):
                    row |= _report(size, found)
            rows.append(row)
    return rows


def _report(size: int, found: Row) -> Row:
    for name, number in found.items():
        print(f"{size:,}: {name}: {_format(number)}", file=sys.stderr, flush=True)
    return found


def _measure_size(url: str, library: ExperienceLibrary, new: range, is_first: bool) -> Iterator[Row]:
    yield _measure_appends(library, new)
    yield {"bytes per run": library.num_bytes() / library.count()}
    if is_first:
        yield _measure_peer(url, library.num_bytes() / library.count())
        yield _measure_two_writers(url, library, min(MOST_WRITTEN, len(new) // 4))
    yield _measure_reads(library, new.stop)
    yield _measure_apart("exported", _export, url)
    yield _measure_apart("curated, a tenth", _curate, url)


def _measure_checks(library: ExperienceLibrary) -> Iterator[Row]:
    seconds, problems = _timed(library.verify)
    if problems:
        raise RuntimeError(f"The library is damaged: {problems[0]}")
    yield {"verified per second": library.count() / seconds}
    seconds, removed = _timed(lambda: prune_library(library, iteration=0))
    yield {"pruned per second": removed.trajectories / seconds, "pruned": removed.trajectories}


def _measure_appends(library: ExperienceLibrary, new: range) -> Row:
    """Append runs one by one and in batches; the time for making them does not count."""
    few = min(READS, len(new) // 4)
    one_by_one = [make_run(number) for number in new[:few]]
    seconds, _ = _timed(lambda: [library.add(run) for run in one_by_one])
    wall, last, began_cpu, cpu = 0.0, 0.0, 0.0, 0.0
    rest = new[few:]
    for start in range(0, len(rest), TRANSACTION):
        batch = [make_run(number) for number in rest[start : start + TRANSACTION]]
        began_cpu = time.process_time()
        last, _ = _timed(partial(library.add_all, batch))
        cpu += time.process_time() - began_cpu
        wall += last
    return {
        "appended per second, one by one": len(one_by_one) / seconds,
        "appended per second, 5,000 in a transaction": len(rest) / wall,
        "the same per second of processor time": len(rest) / cpu,
        "the same, the last transaction": len(batch) / last,
    }


def _measure_peer(url: str, size: float) -> Row:
    """Insert blobs into a table of their own."""
    location = url.replace("library.sqlite", "peer.sqlite")
    engine = sa.create_engine(location)
    table = sa.Table(
        "peer", sa.MetaData(), sa.Column("number", sa.Integer, primary_key=True), sa.Column("body", sa.LargeBinary)
    )
    table.create(engine)
    body = random.Random(0).randbytes(round(size))
    rows = [{"body": body}] * TRANSACTION

    def insert() -> None:
        for _ in range(PEER_TRANSACTIONS):
            with engine.begin() as connection:
                connection.execute(table.insert().inline(), rows)

    seconds, _ = _timed(insert)
    table.drop(engine)
    engine.dispose()
    return {"the peer: blobs per second": PEER_TRANSACTIONS * TRANSACTION / seconds}


def _measure_two_writers(url: str, library: ExperienceLibrary, number: int) -> Row:
    """Let two processes add runs at once, a third of them the same, and check that nothing is lost."""
    before = library.count()
    total = 2 * number - number // 3
    starts = (-total, -number)
    with ProcessPoolExecutor(2, _processes()) as pool:
        list(pool.map(_warm_up, [url, url]))
        seconds, _ = _timed(lambda: list(pool.map(_write, [url, url], starts, [number, number])))
    if (found := library.count() - before) != total:
        raise RuntimeError(f"Two writers left {found} runs, expected {total}.")
    return {"appended per second, two writers, transactions of 500": 2 * number / seconds}


def _warm_up(url: str) -> None:
    with ExperienceLibrary(url) as library:
        library.count()
    build()
    time.sleep(0.5)  # so that the other task goes to the other process


def _write(url: str, first: int, number: int) -> None:
    with ExperienceLibrary(url) as library:
        for start in range(first, first + number, 500):
            library.add_all(make_run(item) for item in range(start, min(start + 500, first + number)))


def _measure_reads(library: ExperienceLibrary, made: int) -> Row:
    newest = max(1, made // 10)
    ids = [make_run(made - 1 - number).id for number in random.Random(0).choices(range(newest), k=READS)]
    reading, _ = _timed(lambda: [library.get(id) for id in ids])
    successes = library.entries(run="million", iteration=ITERATIONS - 1, min_reward=1.0)
    listing, listed = _timed(lambda: sum(1 for _ in successes))
    return {"read by id per second": READS / reading, "successes of an iteration listed per second": listed / listing}


def _measure_apart(name: str, work: Work, url: str) -> Row:
    with ProcessPoolExecutor(1, _processes()) as pool:
        seconds, rows, megabytes = pool.submit(_in_process, work, url).result()
    return {f"{name}: rows": rows, f"{name}: seconds": seconds, f"{name}: extra MB": megabytes}


def _processes() -> BaseContext:
    """Return what starts processes that have imported all, and hold nothing of this one's memory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.library"])
    return context


def _in_process(work: Work, url: str) -> tuple[float, int, float]:
    """Return the seconds, the rows, and the peak memory above that after a first read."""
    with ExperienceLibrary(url) as library, tempfile.TemporaryDirectory() as folder:
        next(library.trajectories())
        build()
        before = _memory("VmRSS")
        seconds, rows = _timed(lambda: work(library, Path(folder)))
        return seconds, rows, _memory("VmHWM") - before


def _export(library: ExperienceLibrary, folder: Path) -> int:
    program = build()
    export = TRLExport(library, {AGENT: [AGENT]}, program.adapter, run="million")
    return export.to_sft(folder / "rows.jsonl").num_rows


def _curate(library: ExperienceLibrary, folder: Path) -> int:
    """Do what a compile does for one agent after an iteration, up to the file that the trainer reads."""
    runs = library.trajectories(run="million", iteration=ITERATIONS - 1, origin=("rollout", "repair"))
    sets = Curator().curate(build().program, runs, {AGENT: [AGENT]}, threshold=1.0)
    sets[AGENT].write(folder / "rows.jsonl")
    return len(sets[AGENT].rows)


def _memory(name: str) -> float:
    """Return a number of the process in MB: `VmRSS` is what it has now, `VmHWM` the most it had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def format_table(name: str, rows: Sequence[Row]) -> str:
    """Return a Markdown table with a column for each size."""
    sizes = [f"{row['runs']:,.0f}" for row in rows]
    names = dict.fromkeys(key for row in rows for key in row if key != "runs")
    lines = [f"| {name} | {' | '.join(sizes)} |", f"|---|{'--:|' * len(sizes)}"]
    lines += [f"| {key} | {' | '.join(_format(row.get(key)) for row in rows)} |" for key in names]
    return "\n".join(lines)


def _format(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2f}"


if __name__ == "__main__":
    main()
