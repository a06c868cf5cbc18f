"""What a compile makes of a server that fails: the same three-agent program, with and without faults.

    python -m benchmarks.faults [--examples 256] [--share 0.05] [--threads 8] [--latency-s 0] [--json]
    python -m benchmarks.faults --examples 10000 --share 0.1 --threads 64 --latency-s 0.2 --only mixed

A server on this machine speaks the OpenAI chat API and answers with a function, so that every difference between two
compiles is one that faults made. Trajectories are compared by their ids, which are hashes of all that happened.

- *mixed*: a share of the requests fail with a 500, a 429, a reset connection, or a body that is no JSON.
- *never*: 1 % of the examples never get an answer; then the server recovers, and the same call is made again.
- *outage*: the server is dead for a while in the middle; the same call is made again until it ends.
- *silent*: the server accepts every request and answers none.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy import Collect, CriticAugmenter, ExperienceLibrary, SiriuS
from sirius_dspy.errors import RolloutError, UnfinishedError
from sirius_dspy.testing import FaultServer, Prompt, ScriptedTrainer, chat_reply
from sirius_dspy.trajectory import example_key

KINDS = ("500", "429", "reset", "broken")


class Team(dspy.Module):
    """Three agents that hand a word on."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = dspy.Predict("question -> note")
        self.thinker = dspy.Predict("note -> thought")
        self.writer = dspy.Predict("thought -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """The answer, which is the question where all agents were right."""
        return self.writer(thought=self.thinker(note=self.reader(question=question).note).thought)


def answer(prompt: Prompt) -> str:
    """The input is handed on; the thinker gets every fifth wrong, unless a critic has told it."""
    if prompt.asks_for("rewritten"):
        return chat_reply(rewritten=prompt.field("text"))
    if prompt.asks_for("feedback"):
        return chat_reply(feedback="hand on what you were given")
    if prompt.asks_for("note"):
        return chat_reply(note=prompt.field("question"))
    if prompt.asks_for("thought"):
        note = str(prompt.field("note"))
        is_right = int(note.split()[1]) % 5 != 0 or prompt.field("feedback")
        return chat_reply(thought=note if is_right else "no idea")
    return chat_reply(answer=prompt.field("thought"))


def metric(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
    """Exact match."""
    return bool(prediction.answer == example.answer)


def examples(number: int) -> list[dspy.Example]:
    """Questions with their answers."""
    names = [f"word {i}" for i in range(number)]
    return [dspy.Example(question=name, answer=name).with_inputs("question") for name in names]


def fit(lm: dspy.LM, data: list[dspy.Example], run_dir: Path, *, iterations: int = 1, **settings: Any) -> dspy.Module:
    """Compile the team with an LM of the server."""
    program = Team()
    program.set_lm(lm)
    optimizer = SiriuS(
        metric,
        iterations=iterations,
        collect=Collect(samples=1),
        augmenter=CriticAugmenter(),
        trainer=ScriptedTrainer(lambda request: request.lm.copy(model=f"openai/{request.agent}")),
        run_dir=run_dir,
        **settings,
    )
    return optimizer.compile(program, trainset=data, valset=data[: len(data) // 4])


def fit_until_done(lm: dspy.LM, data: list[dspy.Example], run_dir: Path, **settings: Any) -> int:
    """Compile, again while calls used up all their tries by chance; return how often it was resumed."""
    for resumed in range(10):
        try:
            fit(lm, data, run_dir, **settings)
        except UnfinishedError:
            continue
        return resumed
    raise SystemExit("The compile did not end in ten calls.")


def ids(run_dir: Path) -> set[str]:
    """The ids of everything that happened."""
    with ExperienceLibrary(run_dir / "library.sqlite") as library:
        return {trajectory.id for trajectory in library.trajectories()}


def mix_faults(share: float, seed: int = 0) -> Callable[[Prompt, int], Any]:
    """Faults at random."""
    rng, lock = random.Random(seed), threading.Lock()

    def fault(prompt: Prompt, before: int) -> Any:
        with lock:
            return rng.choice(KINDS) if rng.random() < share else None

    return fault


def never(questions: set[str]) -> Callable[[Prompt, int], Any]:
    """The reader never gets an answer to some questions."""
    return lambda prompt, before: "500" if prompt.field("question") in questions and prompt.asks_for("note") else None


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compile without faults and with each kind, and compare."""
    data, results = examples(arguments.examples), {}

    def answer_slowly(prompt: Prompt) -> str:
        time.sleep(arguments.latency_s)
        return answer(prompt)

    with FaultServer(answer_slowly) as server, tempfile.TemporaryDirectory() as folder, quiet(arguments.threads):
        root = Path(folder)
        with _seconds() as took:
            fit(server.lm(), data, root / "whole")
        whole = ids(root / "whole")
        results["whole"] = {"trajectories": len(whole), "calls": server.calls, **took}
        kinds: dict[str, Callable[[], dict[str, Any]]] = {
            "mixed": lambda: _run_mixed(server, data, root / "mixed", whole, arguments.share),
            "never": lambda: _never(server, data, root / "never", whole),
            "outage": lambda: _outage(server, data, root / "outage", whole, arguments.outage_s),
            "silent": lambda: _silent(server, data, root / "silent", arguments.limit_s),
        }
        for name in [arguments.only] if arguments.only else kinds:
            results[name] = kinds[name]()
    return results


def _run_mixed(
    server: FaultServer, data: list[dspy.Example], run_dir: Path, whole: set[str], share: float
) -> dict[str, Any]:
    server.faults = mix_faults(share)
    server.failed.clear()
    with _seconds() as took:
        resumed = fit_until_done(server.lm(), data, run_dir)
    return {**_difference(run_dir, whole), "faults": dict(server.failed), "resumed": resumed, **took}


def _never(server: FaultServer, data: list[dspy.Example], run_dir: Path, whole: set[str]) -> dict[str, Any]:
    lost = data[len(data) // 4 :: 77][: max(len(data) // 100, 1)]  # none of the valset, so that collecting stops
    server.faults = never({example.question for example in lost})
    with _seconds() as took:
        try:
            fit(server.lm(), data, run_dir)
            named: set[str] = set()
        except UnfinishedError as error:
            named = set(error.examples)
    expected = {example_key(example) for example in lost}
    server.faults = None
    fit(server.lm(), data, run_dir)
    return {"unfinished": len(named), "exactly those": named == expected, **_difference(run_dir, whole), **took}


def _outage(
    server: FaultServer, data: list[dspy.Example], run_dir: Path, whole: set[str], outage_s: float
) -> dict[str, Any]:
    server.faults = None
    middle, before = threading.Event(), server.calls

    def die(prompt: Prompt, asked: int) -> None:
        if server.calls - before > 2 * len(data) and not middle.is_set():
            middle.set()
            server.is_dead = True
            threading.Timer(outage_s, lambda: setattr(server, "is_dead", False)).start()

    server.faults = die
    errors: list[str] = []
    with _seconds() as took:
        while True:
            try:
                fit(server.lm(), data, run_dir)
                break
            except (RolloutError, UnfinishedError) as error:
                errors.append(type(error).__name__)
                time.sleep(1.0)
    server.faults = None
    return {"stopped with": errors, **_difference(run_dir, whole), **took}


def _silent(server: FaultServer, data: list[dspy.Example], run_dir: Path, limit_s: float) -> dict[str, Any]:
    server.faults = lambda prompt, before: "hang"
    with _seconds() as took:
        try:
            fit(server.lm(), data, run_dir, call_timeout_s=limit_s)
            raised = "nothing"
        except Exception as error:
            raised = type(error).__name__
    return {"raised": raised, "limit_s": limit_s, **took}


def _difference(run_dir: Path, whole: set[str]) -> dict[str, int]:
    got = ids(run_dir)
    return {"missing": len(whole - got), "different": len(got - whole)}


@contextmanager
def _seconds() -> Iterator[dict[str, float]]:
    began, took = time.perf_counter(), {"seconds": 0.0}
    yield took
    took["seconds"] = round(time.perf_counter() - began, 1)


@contextmanager
def quiet(threads: int) -> Iterator[None]:
    """Neither warnings, nor a second try with JSON where a reply does not parse."""
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    with warnings.catch_warnings(), dspy.context(adapter=adapter, num_threads=threads):
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--latency-s", type=float, default=0.0, help="of each answer")
    parser.add_argument("--share", type=float, default=0.05, help="of the requests that fail in `mixed`")
    parser.add_argument("--only", choices=["mixed", "never", "outage", "silent"])
    parser.add_argument("--outage-s", type=float, default=20.0)
    parser.add_argument("--limit-s", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = compare(arguments)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for name, figures in results.items():
        line = ", ".join(f"{key}: {value}" for key, value in figures.items())
        print(f"{name:8} {line}")


if __name__ == "__main__":
    main()
