"""Where work divides: teams and single agents before training and after training on gold steps.

    python -m benchmarks.ceilings [--tasks crown two_hops] [--train 80] [--test 60] [--seed 0] [--json FILE]

Start: the untrained model with demonstrations of the task in its prompts. Ceiling: each agent is fine-tuned on the
right steps of the training examples, which only generated tasks can give. A task is worth a study if the team's
ceiling is clearly above those of the single agents. The last but one column has the share of each agent's steps that
are right given their own inputs, by the oracle of the task. Items are validation items, so that test items stay unseen.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dspy
from dspy.clients.utils_finetune import TrainDataFormat

from programs import hops, ledger, plan_and_calculate, tracking
from sirius_dspy import LocalLM, PlainAdapter
from sirius_dspy.running.evaluation import Evaluation, evaluate
from sirius_dspy.training.prompts import training_messages

ADAPTER = PlainAdapter()


@dataclass(frozen=True)
class Form:
    """A program for a task."""

    name: str
    arguments: Mapping[str, bool] = field(default_factory=dict)
    """Of `build`, `demonstrations` and `gold_steps`."""
    max_tokens: int = 40


FORMS = (
    Form("single", {"single": True}),
    Form("single with reasoning", {"single": True, "reasoning": True}, max_tokens=200),
    Form("team"),
)
_WITH_CALCULATOR = (*FORMS, Form("single with calculator", {"single": True, "calculator": True}))


@dataclass(frozen=True)
class Case:
    """A task with its sizes of items.

    Attributes:
        task: A task of `programs` with `gold_steps` and `oracle`.
        train: Settings of the training examples.
        tests: Settings of the items that are scored, by what the table calls them.
    """

    task: Any
    train: Mapping[str, Any]
    tests: Mapping[str, Mapping[str, Any]]
    forms: Sequence[Form] = FORMS


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    task: str
    form: str
    stage: str
    items: str
    accuracy: float
    steps: Mapping[str, float]
    """Agent to the share of its steps that are right."""
    seconds: float
    """Of the training, or of the test for the start."""


_Sizes = tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]]

_TRACKING: _Sizes = (
    {"events": (1, 2, 3)},
    {"1 event": {"events": 1}, "5 events": {"events": 5}, "10 events": {"events": 10}},
)

_LEDGER: _Sizes = ({"parts": (1, 2, 3)}, {"3 parts": {"parts": 3}, "8 parts": {"parts": 8}})

_HOPS: _Sizes = ({}, {"3 chains": {"chains": 3}, "5 chains": {"chains": 5}})
_PLANS: _Sizes = ({}, {"2 kinds": {"kinds": 2}, "4 kinds": {"kinds": 4}})

CASES = {
    "crown": Case(tracking.crown, *_TRACKING),
    "boxes": Case(tracking.boxes, *_TRACKING),
    "rooms": Case(tracking.rooms, *_TRACKING),
    "calendar": Case(tracking.calendar, *_TRACKING),
    "two_hops": Case(hops.two_hops, *_HOPS),
    "two_hops_things": Case(hops.two_hops_things, *_HOPS),
    "three_hops": Case(hops.three_hops, *_HOPS),
    "entries": Case(ledger.entries, *_LEDGER),
    "shells": Case(ledger.shells, *_LEDGER),
    "legs": Case(plan_and_calculate.legs, *_PLANS, _WITH_CALCULATOR),
    "prices": Case(plan_and_calculate.prices, *_PLANS, _WITH_CALCULATOR),
}


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement."""

    model: str = "smollm2-135m-instruct"
    num_train: int = 80
    num_test: int = 60
    num_shown: int = 4
    """Runs in the prompts of the untrained programs."""
    max_rows: int = 160
    """Maximum number of training rows of one agent."""
    seed: int = 0
    num_threads: int = 16


def measure(name: str, case: Case, settings: Settings) -> Iterator[Result]:
    """Measure all forms of a task before and after training."""
    for form in case.forms:
        base = LocalLM(settings.model, max_tokens=form.max_tokens)
        program = case.task.build(**form.arguments)
        program.set_lm(base)
        demos = case.task.demonstrations(**form.arguments, size=settings.num_shown)
        yield from _score(name, case, form, program, settings, "start", demos, 0.0)
        started = time.perf_counter()
        _train(program, base, case, form, settings)
        seconds = time.perf_counter() - started
        yield from _score(name, case, form, program, settings, "ceiling", None, seconds)


def gold_rows(case: Case, form: Form, program: dspy.Module, settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Return the training rows of right steps by predictor, without repeated ones."""
    predictors = dict(program.named_predictors())
    rows: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for example in case.task.examples("train", settings.num_train, settings.seed, **case.train):
        for step in case.task.gold_steps(example, **form.arguments):
            signature = predictors[step.predictor].signature
            row = {"messages": training_messages(ADAPTER, signature, step.inputs, step.outputs)}
            rows[step.predictor][json.dumps(row)] = row
    chance = random.Random(settings.seed)
    return {name: _at_most(list(own.values()), settings.max_rows, chance) for name, own in rows.items()}


def _at_most(rows: list[dict[str, Any]], size: int, chance: random.Random) -> list[dict[str, Any]]:
    chance.shuffle(rows)
    return rows[:size]


def _train(program: dspy.Module, base: LocalLM, case: Case, form: Form, settings: Settings) -> None:
    for name, rows in gold_rows(case, form, program, settings).items():
        options = {"output_dir": f"{tempfile.mkdtemp(prefix='ceilings-')}/{name}", "seed": settings.seed}
        dict(program.named_predictors())[name].lm = base.finetune(rows, TrainDataFormat.CHAT, options).result()


def _score(
    name: str,
    case: Case,
    form: Form,
    program: dspy.Module,
    settings: Settings,
    stage: str,
    demos: Mapping[str, Sequence[dspy.Example]] | None,
    seconds: float,
) -> Iterator[Result]:
    for items, arguments in case.tests.items():
        examples = case.task.examples("validation", settings.num_test, settings.seed, **arguments)
        found = evaluate(program, examples, case.task.metric, demos=demos, num_threads=settings.num_threads)
        steps = right_steps(case.task, examples, found)
        yield Result(name, form.name, stage, items, round(found.score, 3), steps, round(seconds, 1))


def right_steps(task: Any, examples: Sequence[dspy.Example], evaluation: Evaluation) -> dict[str, float]:
    """Return the share of right steps by predictor."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for example, trajectory in zip(examples, evaluation.trajectories, strict=True):
        for step in trajectory.steps:
            verdicts[step.predictor].append(task.oracle(example, step))
    return {name: round(sum(found) / len(found), 3) for name, found in verdicts.items()}


def format_line(result: Result) -> str:
    """Return a row of the Markdown table."""
    steps = ", ".join(f"{agent} {100 * share:.0f}" for agent, share in result.steps.items())
    numbers = f"{100 * result.accuracy:.0f} | {steps} | {result.seconds:.0f}"
    return f"| {result.task} | {result.items} | {result.form} | {result.stage} | {numbers} |"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=sorted(CASES), default=list(CASES), help="tasks to measure")
    parser.add_argument("--train", type=int, default=Settings.num_train, help="training examples")
    parser.add_argument("--test", type=int, default=Settings.num_test, help="items of each length that are scored")
    parser.add_argument("--rows", type=int, default=Settings.max_rows, help="maximum number of rows of an agent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file that receives one JSON line for each result")
    return parser.parse_args()


def main() -> None:
    """Print the table, line by line."""
    arguments = _parse()
    settings = Settings(
        num_train=arguments.train, num_test=arguments.test, max_rows=arguments.rows, seed=arguments.seed
    )
    print("| task | items | program | stage | accuracy | right steps | training, s |\n|---|---|---|---|---|---|---|")
    with dspy.context(adapter=ADAPTER):
        for name in arguments.tasks:
            for result in measure(name, CASES[name], settings):
                print(format_line(result), flush=True)
                if arguments.json:
                    with arguments.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main()
