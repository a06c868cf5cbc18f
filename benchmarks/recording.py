"""What recording costs: the same program without it, with it, and with it in a compile, on an LM that answers at once.

    python -m benchmarks.recording [--repeats 15] [--calls 200] [--json]

A run makes `--calls` predictor calls in a loop. The three sides take turns in one process, and each goes first equally
often, so that a busy machine slows all of them. All run without DSPy's history, which recording turns off: keeping it
costs about as much as recording. In a compile, a watch over the run's time limits and failures is active as well.
Target: less than 0.3 ms added per LM call.

Memory is what stays allocated for a recorded run, by `tracemalloc`, in a run of its own since tracing is slow.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import dspy

from sirius_dspy.running.patience import Health, Patience
from sirius_dspy.running.record import record
from sirius_dspy.running.recording import Recording
from sirius_dspy.running.watch import Watch, watch_over
from sirius_dspy.testing import Prompt, ScriptedLM, chat_reply

TARGET_MS = 0.3

CONTEXT = "Ada adores trail running. " * 40
"""About 1000 characters, the length of a paragraph."""


@dataclass(frozen=True)
class Cost:
    """Medians over the repeats."""

    plain_ms: float
    """Per LM call, unrecorded."""
    recorded_ms: float
    compile_ms: float
    """Recorded in a compile."""
    added_ms: float
    """Recorded less unrecorded, per LM call: median of the differences within a round."""
    compile_added_ms: float
    """The same for what is recorded in a compile."""
    ratio: float
    """Median of recorded over unrecorded, within a round."""
    bytes_per_step: float
    """Allocated and kept, for a step with `CONTEXT` as its input."""
    repeats: int
    calls: int


class Loop(dspy.Module):
    """Calls one predictor again and again, each time with its last answer."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls
        self.step = dspy.Predict("context, question -> answer")

    def forward(self, context: str, question: str) -> dspy.Prediction:
        """The last answer."""
        answer = question
        for number in range(self.calls):
            answer = self.step(context=f"{number} {context}", question=answer).answer
        return dspy.Prediction(answer=answer)


def build(calls: int) -> dspy.Module:
    """The program with an LM that needs no time."""
    program = Loop(calls)
    program.set_lm(ScriptedLM(_reply))
    return program


def _reply(prompt: Prompt) -> str:
    return chat_reply(answer=f"It is {prompt.field('question')}"[-60:])


def measure(repeats: int, calls: int) -> Cost:
    """Let the sides take turns, and compare within a round."""
    program = build(calls)
    inputs = {"context": CONTEXT, "question": "Who?"}
    sides: tuple[Callable[[], object], ...] = (
        lambda: program(**inputs),
        lambda: record(program, inputs),
        lambda: _record_in_a_compile(program, inputs),
    )
    with dspy.context(disable_history=True):  # recording turns it off, so that the first side must not pay for it
        for side in sides:
            side()
        rounds = [_round(sides, first=turn % len(sides)) for turn in range(repeats)]
    per_call = 1000 / calls
    return Cost(
        plain_ms=statistics.median(plain for plain, _, _ in rounds) * per_call,
        recorded_ms=statistics.median(recorded for _, recorded, _ in rounds) * per_call,
        compile_ms=statistics.median(compiling for _, _, compiling in rounds) * per_call,
        added_ms=statistics.median(recorded - plain for plain, recorded, _ in rounds) * per_call,
        compile_added_ms=statistics.median(compiling - plain for plain, _, compiling in rounds) * per_call,
        ratio=statistics.median(recorded / plain for plain, recorded, _ in rounds),
        bytes_per_step=kept_bytes(program, inputs) / calls,
        repeats=repeats,
        calls=calls,
    )


def _record_in_a_compile(program: dspy.Module, inputs: dict[str, str]) -> None:
    """Record as a rollout does, whose watch is a DSPy callback that hears of every call."""
    with watch_over(Watch(Patience(), Health())):
        record(program, inputs)


def _round(sides: Sequence[Callable[[], object]], *, first: int) -> list[float]:
    """Run every side once, from `first` on, and return the seconds of each in the order of `sides`."""
    order = [(first + step) % len(sides) for step in range(len(sides))]
    seconds = {side: _seconds(sides[side]) for side in order}
    return [seconds[side] for side in range(len(sides))]


def _seconds(run: Callable[[], object]) -> float:
    gc.collect()
    began = time.process_time()
    run()
    return time.process_time() - began


def kept_bytes(program: dspy.Module, inputs: dict[str, str]) -> int:
    """Bytes that the steps of a recording keep alive, its DSPy trace left out: a trajectory does not have it."""
    steps = _record(program, inputs).steps  # fills caches that the next run shares
    tracemalloc.start()
    try:
        before = _traced_memory()
        steps = _record(program, inputs).steps
        return _traced_memory() - before if steps else 0
    finally:
        tracemalloc.stop()


def _record(program: dspy.Module, inputs: dict[str, str]) -> Recording:
    """A recording, with what DSPy and the scripted LM keep of the calls themselves thrown away."""
    with dspy.context(disable_history=True):
        recording = record(program, inputs)
    for predictor in program.predictors():
        predictor.lm.engine.requests.clear()
    return recording


def _traced_memory() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what recording adds to an LM call.")
    parser.add_argument("--repeats", type=int, default=15, help="rounds of runs, one of each side")
    parser.add_argument("--calls", type=int, default=200, help="LM calls per run")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    cost = measure(arguments.repeats, arguments.calls)
    if arguments.json:
        print(json.dumps(asdict(cost)))
        return
    print(f"per LM call, medians of {cost.repeats} rounds with {cost.calls} calls on each side")
    print(f"  unrecorded             {cost.plain_ms:8.3f} ms")
    print(f"  recorded               {cost.recorded_ms:8.3f} ms, which adds {cost.added_ms:.3f} ms")
    print(f"  recorded in a compile  {cost.compile_ms:8.3f} ms, which adds {cost.compile_added_ms:.3f} ms")
    print(f"  target: less than {TARGET_MS} ms added; recorded / unrecorded: {cost.ratio:.3f}")
    print(f"memory per recorded step: {cost.bytes_per_step:.0f} bytes, of which its inputs are about {len(CONTEXT)}")


if __name__ == "__main__":
    main()
