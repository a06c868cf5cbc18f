"""How much faster several Ray workers collect runs than one, where the server needs most of the time.

    python -m benchmarks.cluster [--workers 4] [--each 8] [--runs 96] [--latency 0.5] [--repeats 3] [--quick] [--json]

The team, the server and what is measured are those of `benchmarks.collection`. Each worker has so few runs in flight
(`--each`) that the calls of all of them need only a part of the machine, as if the workers had machines of their own.
One worker collects `--runs` runs, and so many times more are collected by several: the ratio of their speeds, in runs
per second, is printed for each round, with its median. Workers are started, and have loaded the program, before the
time is taken.
"""

from __future__ import annotations

import argparse
import json
import statistics

from benchmarks.collection import run_side
from benchmarks.latency_server import serve


def speed(workers: int, each: int, runs: int, latency_s: float) -> float:
    """Collect runs on a Ray cluster on this machine, and return how many of them per second.

    Args:
        workers: Ray workers.
        each: Runs in flight of each worker.
        runs: Runs of each worker.
        latency_s: Seconds that the server needs for a call.
    """
    with serve(latency_s) as url:
        measured = run_side(f"sirius-ray-{workers}", url, runs * workers, each * workers)
    return runs * workers / measured["seconds"]


def compare(workers: int, each: int, runs: int, latency_s: float, repeats: int) -> list[tuple[float, float]]:
    """Return the speeds of one worker and of several, of each round; see `speed`."""
    return [(speed(1, each, runs, latency_s), speed(workers, each, runs, latency_s)) for _ in range(repeats)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare several Ray workers with one.")
    parser.add_argument("--workers", type=int, default=4, help="Ray workers")
    parser.add_argument("--each", type=int, default=8, help="runs in flight of each worker")
    parser.add_argument("--runs", type=int, default=96, help="runs of each worker")
    parser.add_argument("--latency", type=float, default=0.5, help="seconds that the server needs for a reply")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it works")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.latency, arguments.repeats = 8, 0.05, 1
    rounds = compare(arguments.workers, arguments.each, arguments.runs, arguments.latency, arguments.repeats)
    ratios = [several / one for one, several in rounds]
    median = statistics.median(ratios)
    if arguments.json:
        print(json.dumps({"speeds": rounds, "ratios": ratios, "median": median}))
        return
    for (one, several), ratio in zip(rounds, ratios, strict=True):
        print(f"1 worker: {one:.1f} runs/s; {arguments.workers} workers: {several:.1f} runs/s; ratio {ratio:.2f}")
    print(f"median ratio: {median:.2f}")


if __name__ == "__main__":
    main()
