"""Runs of a team of three agents, as a library gets them: made from a number, without an LM."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import dspy
from dspy.signatures import make_signature

from sirius_dspy.training.prompts import PromptProbe
from sirius_dspy.trajectory import Step, Trajectory, Usage

AGENTS = ("reader", "solver", "judge")
ITERATIONS = 10
RUNS_PER_EXAMPLE = 500

_WORDS = [f"word{number}" for number in range(300)]


@dataclass(frozen=True)
class Team:
    """The program, and what its predictors send."""

    program: dspy.Module
    adapter: dspy.ChatAdapter
    fingerprint: str
    signatures: dict[str, str]
    prompts: dict[str, str]
    """Predictor to the messages that it sends, as canonical JSON, with `TEXT` for its input."""


class _Program(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in AGENTS:
            setattr(self, name, dspy.Predict(make_signature("text -> thought, answer", f"You are the {name}.")))


@cache
def build() -> Team:
    """Make the program, and find out its prompts."""
    program, adapter = _Program(), dspy.ChatAdapter()
    probe = PromptProbe(program)
    prompts = {name: prompt.text for name in AGENTS if (prompt := probe.prompt(name, {"text": "TEXT"})[0])}
    signatures = {name: probe.signature_id(name) for name in AGENTS}
    return Team(program, adapter, probe.program_id, signatures, prompts)


def make_run(number: int) -> Trajectory:
    """Return a run that is always the same for a number: three calls, half of the runs a success."""
    team = build()
    rng = random.Random(number)
    example = number // RUNS_PER_EXAMPLE
    text = _text(random.Random(example), 30)
    steps = []
    for position, name in enumerate(AGENTS):
        outputs = {"thought": _text(rng, 15), "answer": _text(rng, 5)}
        steps.append(
            Step(
                predictor=name,
                occurrence=0,
                inputs={"text": text},
                outputs=outputs,
                lm="openai/gpt-4.1-mini",
                usage=Usage(1, 120, 40),
                seconds=0.5,
                started=2 * position,
                ended=2 * position + 1,
                prompt=team.prompts[name].replace("TEXT", text),
                signature=team.signatures[name],
                finish="stop",
            )
        )
        text = outputs["answer"]
    return Trajectory(
        example_key=f"example-{example}",
        steps=tuple(steps),
        prediction={"answer": text},
        reward=float(rng.random() < 0.5),
        program=team.fingerprint,
        run="million",
        iteration=number % ITERATIONS,
        sample=number % RUNS_PER_EXAMPLE,
        seed=number,
        seconds=1.5,
    )


@cache
def _texts(words: int) -> tuple[str, ...]:
    rng = random.Random(words)
    return tuple(" ".join(rng.choices(_WORDS, k=words)) for _ in range(1000))


def _text(rng: random.Random, words: int) -> str:
    return f"{rng.choice(_texts(words))} {rng.getrandbits(48)}"
