"""A compile that is killed again and again: is everything as without the kills, and how many calls are made twice?

    python -m benchmarks.kills [--kills 50] [--seed 0] [--threads 8] [--latency-s 0.02] [--json]
    python -m benchmarks.kills --processes 2 --postgres

A server on this machine counts the requests, so that a killed process takes no count with it. The compile has three
agents, repairs by a critic, a gate and two iterations. Each round begins a new one in a process of its own, and kills
that with SIGKILL at random moments until a process comes to the end. Then all trajectories are compared by their ids,
and the files of training rows byte by byte, with those of a compile that nobody disturbed. A request that was made more
often than there is repeated; only those in flight may be. The library is in SQLite, in a PostgreSQL server that is
started for the measurement (`--postgres`), or in one that is there already (`--library URL`).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import dspy
import sqlalchemy as sa

from benchmarks.faults import answer, examples, fit
from benchmarks.postgres import find_programs, running_server
from sirius_dspy import ExperienceLibrary, ProcessExecutor
from sirius_dspy.testing import FaultServer, Prompt

MAX_KILLS = 5
"""Kills of one compile; after them it comes to its end."""


class Outcome(NamedTuple):
    """What a compile left behind."""

    ids: frozenset[str]
    rows: dict[str, bytes]
    requests: Counter[str]


def compile_team(url: str, run_dir: Path, library: str, threads: int, number: int, processes: int) -> None:
    """Compile against the server; the child process does nothing else."""
    dspy.configure(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False))
    lm = dspy.LM("openai/served", api_base=url, api_key="none", num_retries=0, cache=False)
    opened = ExperienceLibrary(library) if library else None
    executor = ProcessExecutor(processes) if processes else None
    fit(lm, examples(number), run_dir, iterations=2, num_threads=threads, library=opened, executor=executor)


class Rounds:
    """Compiles that are killed.

    Args:
        arguments: Those of the command line.
        server: That all of them ask.
        folder: For their run directories.
    """

    def __init__(self, arguments: argparse.Namespace, server: FaultServer, folder: Path) -> None:
        self.arguments = arguments
        self.server = server
        self.folder = folder
        self.random = random.Random(arguments.seed)
        self.requests: Counter[str] = Counter()
        self.asked_at: list[float] = []

    def answer(self, prompt: Prompt) -> str:
        """Count a request, and answer it after a while."""
        self.asked_at.append(time.perf_counter())
        self.requests[f"{prompt.model} {prompt.text}"] += 1
        time.sleep(self.arguments.latency_s)
        return answer(prompt)

    def run(self, name: str, kill_within_s: float, max_kills: int) -> tuple[Outcome, int]:
        """Compile once, with kills on the way, and return what is left and how many kills there were."""
        self.requests.clear()
        run_dir, library, kills = self.folder / name, self._new_library(name), 0
        while True:
            with self._begin(run_dir, library) as child:
                if kills < max_kills:
                    self._wait_for_work(child)
                    try:
                        child.wait(self.random.uniform(0.0, kill_within_s))
                    except subprocess.TimeoutExpired:
                        child.kill()
                        kills += 1
                        continue
                _, errors = child.communicate()
            if child.returncode != 0:
                raise RuntimeError(f"The compile failed:\n{errors[-3000:]}")
            with ExperienceLibrary(library or run_dir / "library.sqlite") as opened:
                ids = frozenset(entry.id for entry in opened.entries(run=self._run_of(run_dir)))
                if problems := opened.verify():
                    raise RuntimeError(f"The library is damaged: {problems[0]}")
            rows = {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*.jsonl")}
            return Outcome(ids, rows, Counter(self.requests)), kills

    def _begin(self, run_dir: Path, library: str) -> subprocess.Popen[str]:
        given = self.arguments
        options = [self.server.url, str(run_dir), library, given.threads, given.examples, given.processes]
        command = [sys.executable, "-m", "benchmarks.kills", "--child", *map(str, options)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def _wait_for_work(self, child: subprocess.Popen[str]) -> None:
        """Starting takes seconds in which there is nothing to kill, so wait until the child asks for something."""
        before = self.requests.total()
        while self.requests.total() == before and child.poll() is None:
            time.sleep(0.005)

    def _new_library(self, name: str) -> str:
        """The URL of a schema of its own, if the libraries are to be in PostgreSQL."""
        if not self.arguments.library:
            return ""
        engine, schema = sa.create_engine(self.arguments.library), f"kills_{name.replace('-', '_')}"
        with engine.begin() as connection:
            connection.execute(sa.text(f"DROP SCHEMA IF EXISTS {schema} CASCADE"))
            connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
        engine.dispose()
        url = sa.make_url(self.arguments.library).update_query_dict({"options": f"-csearch_path={schema}"})
        return url.render_as_string(hide_password=False)

    @staticmethod
    def _run_of(run_dir: Path) -> str:
        return str(json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["run"])


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures of each round."""
    with FaultServer(answer) as server, tempfile.TemporaryDirectory() as folder:
        rounds = Rounds(arguments, server, Path(folder))
        server.answer = rounds.answer
        whole, _ = rounds.run("whole", 0.0, 0)
        took, kills, number = rounds.asked_at[-1] - rounds.asked_at[0], 0, 0
        while kills < arguments.kills:
            number += 1
            found, new = rounds.run(f"round-{number}", took / 2, min(MAX_KILLS, arguments.kills - kills))
            kills += new
            yield {
                "kills": new,
                "missing": len(whole.ids - found.ids),
                "different": len(found.ids - whole.ids),
                "training files equal": found.rows == whole.rows,
                "repeated": (found.requests - whole.requests).total(),
                "at most in flight": new * arguments.threads,
                "calls": whole.requests.total(),
            }


def main() -> None:
    """Print the figures."""
    if sys.argv[1:2] == ["--child"]:
        url, run_dir, library, threads, number, processes = sys.argv[2:]
        compile_team(url, Path(run_dir), library, int(threads), int(number), int(processes))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--latency-s", type=float, default=0.02)
    parser.add_argument("--processes", type=int, default=0, help="worker processes; threads alone by default")
    parser.add_argument("--library", default="", help="URL of a PostgreSQL database; SQLite by default")
    parser.add_argument("--postgres", action="store_true", help="start a PostgreSQL server for the library")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    programs = find_programs() if arguments.postgres else None
    if arguments.postgres and programs is None:
        parser.error("PostgreSQL is not installed: there is no `initdb`. Give a `--library`.")
    database = nullcontext(arguments.library) if programs is None else running_server(programs, "fsync=off")
    with database as arguments.library:
        summary = measure_all(arguments)
    print(json.dumps(summary) if arguments.json else ", ".join(f"{name}: {value}" for name, value in summary.items()))


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the figures of each round, and return those of all."""
    rounds = []
    for figures in measure(arguments):
        rounds.append(figures)
        print(", ".join(f"{name}: {value}" for name, value in figures.items()), file=sys.stderr, flush=True)
    kills = sum(figures["kills"] for figures in rounds)
    return {
        "rounds": len(rounds),
        "kills": kills,
        "rounds that differ": sum(
            bool(figures["missing"] or figures["different"]) or not figures["training files equal"]
            for figures in rounds
        ),
        "repeated calls per kill": round(sum(figures["repeated"] for figures in rounds) / max(kills, 1), 2),
        "most repeated calls per kill": max(
            (round(figures["repeated"] / figures["kills"], 2) for figures in rounds), default=0
        ),
        "rounds with more than in flight": sum(
            figures["repeated"] > figures["at most in flight"] for figures in rounds
        ),
    }


if __name__ == "__main__":
    main()
