"""Compiles back to back in one process, on a server that fails: does anything grow?

    python -m benchmarks.soak [--minutes 15] [--examples 48] [--threads 8] [--share 0.1] [--processes 0] [--json]
    python -m benchmarks.soak --quick

Each round compiles the three-agent program of `benchmarks.faults` anew, while a share of the requests fail with a 500,
a 429, a reset connection or a body that is no JSON. After each round the program, its run directory and its library are
dropped, and what the process holds is counted. The growth is the slope of a straight line through the rounds after the
warm-up, with the 95 % interval of a bootstrap over blocks of neighbouring rounds. It exits with 1 if something grows:
if the interval lies above zero, and the growth over the measured time is more than the noise that is allowed for it.

A round is resumed where a call used up all its tries by chance. malloc has one pool of memory here, where glibc offers
that: with several, each of them keeps what was freed in it, so `rss MB` rises for hours though nothing is leaked.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dspy
import numpy as np
import psutil

from benchmarks.faults import answer, examples, fit_until_done, mix_faults, quiet
from sirius_dspy import ProcessExecutor
from sirius_dspy.testing import FaultServer

ALLOWED = {
    "rss MB": 8.0,
    "used MB": 1.0,
    "objects": 1000.0,
    "threads": 2.0,
    "files": 2.0,
    "temporary files": 0.5,
    "children": 0.5,
}
"""What is counted, and by how much it may differ between two rounds without a leak."""

DRAWS = 2000
"""Of the bootstrap."""


_M_ARENA_MAX = -8
"""What `mallopt` calls the number of pools."""


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc: ten numbers of bytes or blocks."""

    _fields_ = (("numbers", ctypes.c_size_t * 10),)


class Growth(NamedTuple):
    """The slope of what was counted, per hour, and its interval."""

    per_hour: float
    low: float
    high: float
    is_leak: bool


def count(folder: Path) -> dict[str, float]:
    """What this process holds now."""
    gc.collect()
    process = psutil.Process()
    return {
        "rss MB": round(process.memory_info().rss / 2**20, 2),
        "used MB": round(_used_bytes() / 2**20, 2),
        "objects": len(gc.get_objects()),
        "threads": threading.active_count(),
        "files": process.num_fds(),
        "temporary files": sum(1 for _ in folder.rglob("*")),
        "children": len(process.children(recursive=True)),
    }


def use_one_pool() -> None:
    """Let malloc keep freed memory for all threads in one place; called before there are others."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_ARENA_MAX, 1)


def _used_bytes() -> int:
    """What malloc gave out and did not get back, without the small objects of Python; 0 where there is no glibc."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = _Mallinfo
    numbers = mallinfo().numbers
    return int(numbers[7] + numbers[4])  # `uordblks`, in pools, and `hblkhd`, in mappings of their own


def soak(arguments: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Compile again and again, and yield what is held after each round, and at which second."""
    began, number = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder, quiet(arguments.threads), FaultServer(answer) as server:
        tempfile.tempdir = folder  # so that what others leave there is not counted
        try:
            while number < arguments.rounds or time.perf_counter() - began < arguments.minutes * 60:
                server.faults = mix_faults(arguments.share, number)
                compile_once(server, arguments)
                number += 1
                yield {"seconds": round(time.perf_counter() - began, 1), **count(Path(folder))}
        finally:
            tempfile.tempdir = None


def compile_once(server: FaultServer, arguments: argparse.Namespace) -> None:
    """One round."""
    executor = ProcessExecutor(arguments.processes) if arguments.processes else None
    with tempfile.TemporaryDirectory() as run_dir:
        fit_until_done(server.lm(), examples(arguments.examples), Path(run_dir), iterations=2, executor=executor)


def find_growth(rounds: list[dict[str, float]], name: str) -> Growth:
    """Fit a line through the rounds.

    Args:
        rounds: Those after the warm-up.
        name: What was counted.
    """
    hours = np.array([figures["seconds"] for figures in rounds]) / 3600
    values = np.array([figures[name] for figures in rounds])
    slope = _slope(hours, values)
    block = max(len(rounds) // 10, 1)  # neighbours are alike
    starts = np.random.default_rng(0).integers(0, len(rounds) - block + 1, (DRAWS, -(-len(rounds) // block)))
    drawn = [(np.add.outer(row, np.arange(block)).ravel()) for row in starts]
    low, high = np.quantile([_slope(hours[row], values[row]) for row in drawn], [0.025, 0.975])
    rise = slope * (hours[-1] - hours[0])
    return Growth(round(slope, 2), round(float(low), 2), round(float(high), 2), bool(low > 0 and rise > ALLOWED[name]))


def _slope(hours: Any, values: Any) -> float:
    spread = hours - hours.mean()
    squares = float((spread**2).sum())
    return float((spread * values).sum()) / squares if squares else 0.0


def main() -> None:
    """Print the figures; the exit status is 1 if something grows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=6, help="at least so many")
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.1, help="of the requests that fail")
    parser.add_argument("--processes", type=int, default=0, help="worker processes; threads alone by default")
    parser.add_argument("--quick", action="store_true", help="two tiny rounds, which say nothing about growth")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.minutes, arguments.rounds, arguments.examples = 0.0, 2, 4
    use_one_pool()
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    dspy.configure(disable_history=True)  # DSPy's own, which grows until it has 10,000 calls
    rounds = []
    for figures in soak(arguments):
        rounds.append(figures)
        print(", ".join(f"{name}: {value:g}" for name, value in figures.items()), file=sys.stderr, flush=True)
    measured = rounds if arguments.quick else rounds[max(len(rounds) // 4, 2) :]
    growth = {name: find_growth(measured, name) for name in ALLOWED}
    if arguments.json:
        print(json.dumps({"rounds": rounds, "growth": {name: found._asdict() for name, found in growth.items()}}))
    else:
        print(f"{len(measured)} rounds after the warm-up, growth per hour (95 % interval):")
        for name, found in growth.items():
            print(f"{name:16}{found.per_hour:+8.2f} ({found.low:+.2f} to {found.high:+.2f})")
    if any(found.is_leak for found in growth.values()) and not arguments.quick:
        sys.exit(1)


if __name__ == "__main__":
    main()
