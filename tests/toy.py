"""A two-agent program and a toy LM that learns, for tests of the whole loop; imported by child processes, too.

`doubler` must double a number, `writer` must format it. Untrained, the doubler fails on odd numbers: with a wrong
answer, or for 7 with text that does not parse. The critic's advice makes it right, in words that need rephrasing.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy import Collect, CompileResult, SiriuS
from sirius_dspy.testing import Prompt, ToyLM, chat_reply
from sirius_dspy.tracking.events import Tracker

ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)


class Doubling(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.doubler = dspy.Predict("number: int -> doubled")
        self.writer = dspy.ChainOfThought("doubled -> answer")

    def forward(self, number: int) -> dspy.Prediction:
        return self.writer(doubled=self.doubler(number=number).doubled)


def skill(prompt: Prompt) -> str:
    """What the toy LM can do before it has learnt anything."""
    if prompt.asks_for("rewritten"):
        return chat_reply(rewritten=prompt.field("text").replace("(corrected) ", ""))
    if prompt.asks_for("doubled"):
        number = int(prompt.field("number"))
        if prompt.field("feedback"):
            return chat_reply(doubled=f"(corrected) {number * 2}")
        if number == 7:
            return "no field header at all"
        return chat_reply(doubled=number * 2 if number % 2 == 0 else "no idea")
    if prompt.asks_for("feedback"):
        return chat_reply(feedback="double the number")
    return chat_reply(reasoning="only the format is missing", answer=f"ans:{prompt.field('doubled')}")


def exact(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
    return bool(example.answer == prediction.answer)


def examples(numbers: Any = range(8)) -> list[dspy.Example]:
    return [dspy.Example(number=i, answer=f"ans:{2 * i}").with_inputs("number") for i in numbers]


def student(**kwargs: Any) -> dspy.Module:
    program = Doubling()
    program.set_lm(ToyLM(skill=skill, **kwargs))
    return program


def without_time(result: CompileResult) -> CompileResult:
    """What must be the same when a finished compile is called again, which takes a moment more."""
    return replace(result, seconds=0.0)


class KilledAt(Tracker):
    """Kills its process without any warning at the n-th event."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("on_"):
            return found

        def hook(event: Any) -> None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), 9)

        return hook


def optimizer(run_dir: Path, **settings: Any) -> SiriuS:
    return SiriuS(
        exact, run_dir=run_dir, **{"iterations": 2, "collect": Collect(samples=2), "num_threads": 4, **settings}
    )


def compiled_by(run_dir: Path, program: dspy.Module | None = None, **settings: Any) -> dspy.Module:
    return optimizer(run_dir, **settings).compile(program or student(), trainset=examples(), valset=examples())


def main(run_dir: str, kill_at: str) -> None:
    """Compile in a process of its own: `python -m tests.toy RUN_DIR NUMBER`."""
    dspy.configure(adapter=ADAPTER)
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    lm_calls = student()
    compiled = optimizer(Path(run_dir), tracker=KilledAt(int(kill_at))).compile(
        lm_calls, trainset=examples(), valset=examples(range(4, 12))
    )
    answers = {number: compiled(number=number).answer for number in range(8)}
    calls = lm_calls.doubler.lm.calls
    sys.stdout.write(
        json.dumps({"results": compiled.detailed_results.to_dict(), "answers": answers, "calls": calls}) + "\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
