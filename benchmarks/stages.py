"""What each stage of a compile takes beside its LM calls, repairs among them, compared with DSPy's own collecting.

    python -m benchmarks.stages [--examples 400] [--threads 64] [--latency-s 0.2] [--json]

A server on this machine answers each call after the same time. So the ideal of a stage is known: with as many calls in
flight as there are threads, they take `calls / threads * latency` seconds. The compile is that of `benchmarks.faults`:
three agents, of which one fails on every fifth example until a critic has told it, one iteration, and a trainer that
takes no time. Its steps follow one another, so a run cannot end before three calls have, and a repair before six;
where runs are few, the ideal is out of reach for every side.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import dspy
from dspy.teleprompt.bootstrap_trace import bootstrap_trace_data

from benchmarks.faults import Team, answer, examples, fit, metric, quiet
from sirius_dspy.testing import FaultServer, Prompt


class Stage(NamedTuple):
    """One stage of a compile, or what DSPy does in its place."""

    name: str
    calls: int
    seconds: float
    cpu_ms: float | None
    """Per call, of this process: of the server's too, which is the same for all."""


def measure(number: int, threads: int, latency_s: float) -> Iterator[Stage]:
    """Compile, and yield the stages; then evaluate and collect with DSPy."""

    def reply(prompt: Prompt) -> str:
        time.sleep(latency_s)
        return answer(prompt)

    data = examples(number)
    with FaultServer(reply) as server, tempfile.TemporaryDirectory() as folder, quiet(threads):
        fit(server.lm(), examples(4), Path(folder) / "warm-up", num_threads=threads)
        began, cpu, before = time.perf_counter(), time.process_time(), server.calls
        compiled = fit(server.lm(), data, Path(folder) / "run", num_threads=threads)
        seconds, cpu, calls = time.perf_counter() - began, time.process_time() - cpu, server.calls - before
        entry = compiled.detailed_results.iterations[1]
        for name, took in entry.seconds.items():
            yield Stage(name, entry.stages[name].calls if name in entry.stages else 0, took, None)
        yield Stage("the whole compile", calls, seconds, 1000 * cpu / calls)
        program = Team()
        program.set_lm(server.lm(cache=False))
        evaluate = dspy.Evaluate(devset=data, metric=metric, num_threads=threads, display_progress=False)
        for name, work in (
            ("dspy.Evaluate", lambda: evaluate(program)),
            ("bootstrap_trace_data", lambda: bootstrap_trace_data(program, data, metric=metric, num_threads=threads)),
        ):
            began, cpu, before = time.perf_counter(), time.process_time(), server.calls
            with redirect_stdout(sys.stderr):  # of DSPy's progress bars
                work()
            seconds, cpu, calls = time.perf_counter() - began, time.process_time() - cpu, server.calls - before
            yield Stage(name, calls, seconds, 1000 * cpu / calls)


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description="What each stage of a compile takes beside its LM calls.")
    parser.add_argument("--examples", type=int, default=400)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--latency-s", type=float, default=0.2, help="of each answer")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.json:
        print(f"{'':22}{'LM calls':>9}{'seconds':>9}{'ideal':>8}{'beside':>8}{'CPU ms per call':>17}")
    for stage in measure(arguments.examples, arguments.threads, arguments.latency_s):
        ideal = stage.calls * arguments.latency_s / arguments.threads
        if arguments.json:
            print(json.dumps({**stage._asdict(), "ideal": ideal}))
            continue
        cpu = "" if stage.cpu_ms is None else f"{stage.cpu_ms:17.2f}"
        print(
            f"{stage.name:22}{stage.calls:9,}{stage.seconds:9.2f}{ideal:8.2f}{stage.seconds - ideal:8.2f}{cpu}",
            flush=True,
        )


if __name__ == "__main__":
    main()
