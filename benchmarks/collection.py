"""How fast runs are collected from a server: SiriuS' collection, DSPy's, and bare sockets.

    python -m benchmarks.collection [--calls 3072] [--in-flight 64 256] [--latency 0.2] [--repeats 1]
        [--processes 2] [--ray 2] [--quick] [--json]

A server on this machine answers every call after the same time, so the ideal is known: with as many runs in flight as
`--in-flight`, `--calls` calls take `calls / in-flight * latency` seconds. The program has three agents that hand a text
on. Each side runs in a process of its own, after some runs that warm it up; the sides take turns. What is printed:

- *wall / ideal*: seconds from the first call to the last result, as a multiple of the ideal.
- *CPU ms per call*: of the process that collects, without the server's and those of other workers.
- *peak MB*: the resident memory of the process at its largest, all imports included.

SiriuS' side records every call and keeps every run in an experience library on disk, as a compile does; DSPy's keep
traces in memory, or only scores. With `--processes 2 4`, it is measured with a `ProcessExecutor` of so many, too, and
with `--ray 2` with so many workers of a Ray cluster that is started on this machine. The server's model name is one
that no price table knows, like those of local servers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.latency_server import serve

AGENTS = 3

WARM_UP = 16
"""Runs before the clock starts; with several workers, each of them gets some."""

NAMES = {
    "sockets": "bare asyncio sockets",
    "evaluate": "dspy.Evaluate",
    "bootstrap": "bootstrap_trace_data",
    "sirius": "SiriuS' collection",
}


# One side, in its own process


def measure_side(side: str, url: str, runs: int, in_flight: int) -> dict[str, float]:
    """Collect runs, and return what it took."""
    with ExitStack() as stack:
        work = _sockets(url, in_flight) if side == "sockets" else _dspy_side(side, url, in_flight, stack)
        work(WARM_UP)
        began, cpu = time.perf_counter(), time.process_time()
        work(runs)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_ms_per_call": 1000 * cpu_seconds / (runs * AGENTS), "peak_mb": peak}


def _sockets(url: str, in_flight: int) -> Callable[[int], None]:
    """The least that a client can do: requests written beforehand, replies read and not looked at."""
    address = urlsplit(url)
    content = json.dumps({"model": "agent", "messages": [{"role": "user", "content": "Who keeps the crown? " * 60}]})
    head = f"POST {address.path}/chat/completions HTTP/1.1\r\ncontent-length: {len(content)}\r\n\r\n"
    request = (head + content).encode()

    async def call_in_turn(calls: int) -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for _ in range(calls):
            writer.write(request)
            header = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(header.rpartition(b"content-length: ")[2]))
        writer.close()

    async def collect(runs: int) -> None:
        each, rest = divmod(runs, in_flight)
        shares = [each + (number < rest) for number in range(in_flight)]
        await asyncio.gather(*(call_in_turn(AGENTS * share) for share in shares if share))

    return lambda runs: asyncio.run(collect(runs))


def _dspy_side(side: str, url: str, in_flight: int, stack: ExitStack) -> Callable[[int], None]:
    import dspy
    from dspy.teleprompt.bootstrap_trace import bootstrap_trace_data

    from sirius_dspy.running.executor import started

    program = _team(url)

    def metric(example: Any, prediction: Any, trace: Any = None) -> float:
        return float(bool(prediction.answer))

    def examples(number: int) -> list[dspy.Example]:
        texts = (f"Story {item}: who keeps the crown? " + "Ada gave it to Bo. " * 20 for item in range(number))
        return [dspy.Example(question=text).with_inputs("question") for text in texts]

    if side == "evaluate":
        return lambda runs: _discard(
            dspy.Evaluate(devset=examples(runs), metric=metric, num_threads=in_flight, display_progress=False)(program)
        )
    if side == "bootstrap":
        return lambda runs: _discard(
            bootstrap_trace_data(program, examples(runs), metric=metric, num_threads=in_flight)
        )
    workers = stack.enter_context(started(_executor(side)))
    return lambda runs: _collect(program, metric, examples(runs), in_flight, workers)


def _executor(side: str) -> Any:
    """The executor of a side such as `sirius`, `sirius-processes-2` or `sirius-ray-2`."""
    from sirius_dspy.executors import ProcessExecutor, RayExecutor

    _, _, rest = side.partition("-")
    kind, _, number = rest.partition("-")
    if not kind:
        return None
    if kind == "processes":
        return ProcessExecutor(int(number))
    return RayExecutor(num_workers=int(number), resources={"num_cpus": 0.1})  # more workers than cores are meant so


def _discard(_: Any) -> None:
    """Drop a result."""


def _team(url: str) -> Any:
    import dspy

    class Team(dspy.Module):
        """Three agents that hand a text on."""

        def __init__(self) -> None:
            super().__init__()
            self.reader = dspy.Predict("question -> note")
            self.thinker = dspy.Predict("note -> thought")
            self.writer = dspy.Predict("thought -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            return self.writer(thought=self.thinker(note=self.reader(question=question).note).thought)

    team = Team()
    team.set_lm(dspy.LM("openai/agent", api_base=url, api_key="none", cache=False))
    return team


def _collect(program: Any, metric: Any, examples: Sequence[Any], in_flight: int, workers: Any) -> None:
    """Collect as a compile does."""
    from sirius_dspy import ExperienceLibrary
    from sirius_dspy.running.rollout import Rollouts, Task

    rollouts = Rollouts(metric, run="benchmark", iteration=1, num_threads=in_flight, workers=workers)
    with tempfile.TemporaryDirectory() as folder, ExperienceLibrary(Path(folder) / "library.sqlite") as library:
        for batch in rollouts.run_batches(program, [Task(example) for example in examples]):
            library.add_runs([run for _, run in batch], [task.example for task, _ in batch])
        if library.count() != len(examples):
            raise RuntimeError("Runs are missing in the library.")


# All sides, compared


def compare(
    calls: int, in_flight: int, latency_s: float, repeats: int, processes: Sequence[int] = (), ray: Sequence[int] = ()
) -> dict[str, dict[str, float]]:
    """Let the sides take turns, and return the medians of each.

    Args:
        calls: LM calls of each side, a multiple of three.
        in_flight: Runs at a time.
        latency_s: Seconds that the server needs.
        repeats: Rounds.
        processes: Numbers of processes with which SiriuS' collection is measured as well.
        ray: Numbers of Ray workers, likewise.
    """
    runs = calls // AGENTS
    ideal = -(-runs // in_flight) * AGENTS * latency_s
    sides = [
        *NAMES,
        *(f"sirius-processes-{number}" for number in processes),
        *(f"sirius-ray-{number}" for number in ray),
    ]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            with serve(latency_s) as url:
                found[side].append(run_side(side, url, runs, in_flight))
    return {side: _medians(results, ideal) for side, results in found.items()}


def run_side(side: str, url: str, runs: int, in_flight: int) -> dict[str, float]:
    """Measure a side in a process of its own; see `measure_side`."""
    command = [sys.executable, "-m", "benchmarks.collection", "--side", side, "--url", url]
    command += ["--calls", str(runs * AGENTS), "--in-flight", str(in_flight)]
    # DSPy reads the price table that is packed with it, rather than one from the net.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "true"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _medians(results: Sequence[dict[str, float]], ideal: float) -> dict[str, float]:
    medians = {name: statistics.median(result[name] for result in results) for name in results[0]}
    return {"wall_over_ideal": medians["seconds"] / ideal, **medians}


def _name_of(side: str) -> str:
    if side in NAMES:
        return NAMES[side]
    _, kind, number = side.split("-")
    return f"SiriuS, {number} {'Ray workers' if kind == 'ray' else 'processes'}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure how fast runs are collected from a server.")
    parser.add_argument("--calls", type=int, default=3072, help="LM calls of each side")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 256], help="runs at a time")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that the server needs for a reply")
    parser.add_argument("--repeats", type=int, default=1, help="rounds; medians are printed")
    parser.add_argument("--processes", type=int, nargs="*", default=[], help="processes of SiriuS' collection")
    parser.add_argument("--ray", type=int, nargs="*", default=[], help="workers of SiriuS' collection on Ray")
    parser.add_argument("--quick", action="store_true", help="a few short calls, to see that it works")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # for the child processes
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        runs, in_flight = arguments.calls // AGENTS, arguments.in_flight[0]
        print(json.dumps(measure_side(arguments.side, arguments.url, runs, in_flight)))
        return
    if arguments.quick:
        arguments.calls, arguments.in_flight, arguments.latency = 24, [4], 0.01
    results = {
        number: compare(
            arguments.calls, number, arguments.latency, arguments.repeats, arguments.processes, arguments.ray
        )
        for number in arguments.in_flight
    }
    if arguments.json:
        print(json.dumps(results))
        return
    for number, sides in results.items():
        print(f"{arguments.calls} calls of {1000 * arguments.latency:g} ms, {number} runs in flight")
        print(f"  {'':22}{'wall / ideal':>14}{'CPU ms per call':>17}{'peak MB':>9}")
        for side, result in sides.items():
            numbers = f"{result['wall_over_ideal']:14.2f}{result['cpu_ms_per_call']:17.2f}{result['peak_mb']:9.0f}"
            print(f"  {_name_of(side):22}{numbers}")


if __name__ == "__main__":
    main()
