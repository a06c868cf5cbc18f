"""Runs the demo: fine-tunes three agents that follow a crown through a story, and measures what each has learned.

14 runs written by hand are the start. The training stories have one event, which needs no more than one step of each
agent; the test stories have up to three. Failed runs are repaired with their labels. Nothing is tuned on the test
items; they are only scored, once for each row of the table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy import (
    Collect,
    Curator,
    LabelAugmenter,
    LadderAugmenter,
    LocalLM,
    LoraOptions,
    PlainAdapter,
    SiriuS,
    save,
)
from sirius_dspy.demo.tracking import crown
from sirius_dspy.files import file_name, write_text
from sirius_dspy.optimizer.results import HeldOutScores, ProgramScore
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.program import copy_program
from sirius_dspy.running.evaluation import Evaluation, evaluate
from sirius_dspy.tracking.events import Tracker
from sirius_dspy.trajectory import Trajectory, example_key


@dataclass(frozen=True)
class DemoSettings:
    """Sizes and training options. The defaults were chosen on validation items of other seeds."""

    train_items: int = 80
    validation_items: int = 30
    test_items: int = 100
    shown_runs: int = 4
    """Runs in the prompts of the program that is only shown demonstrations."""
    swap_items: int = 40
    """Test items for the trained program with one untrained agent, and for the one that is shown demonstrations."""
    train_events: tuple[int, ...] = (1,)
    """Numbers of events of a training story. With one event, a right answer proves most about each agent."""
    events: tuple[int, ...] = (1, 2, 3)
    """Numbers of events of a validation or test story."""
    iterations: int = 1
    samples: int = 1
    temperature: float = 0.7
    max_rows: int = 80
    max_tokens: int = 12
    num_threads: int = 64
    lora: LoraOptions = field(default_factory=LoraOptions)
    base_model: str = "smollm2-135m-instruct"


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo. Accuracies are shares of test items with a right answer."""

    seed: int
    zero_shot: float
    demonstrated: float
    """Accuracy of the same base model with demonstrations in its prompts."""
    validation: tuple[float, ...]
    """Accuracy on the validation items after the warm start and after each iteration."""
    swaps: Mapping[str, float]
    """Agent to the accuracy of the trained program in which this agent is untrained."""
    best_iteration: int
    final: float
    test_items: int
    majority: float
    seconds: Mapping[str, float]
    checkpoint: Path
    results: Mapping[str, Any]
    evaluations: Mapping[str, Evaluation]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as `--json` prints it."""
        names = ("seed", "zero_shot", "demonstrated", "best_iteration", "final", "test_items", "majority")
        return {
            **{name: getattr(self, name) for name in names},
            "validation": list(self.validation),
            "swaps": dict(self.swaps),
            "seconds": dict(self.seconds),
            "intervals": {name: list(evaluation.interval()) for name, evaluation in self.evaluations.items()},
            "repair": [entry["repair"] for entry in self.results["iterations"][1:]],
            "checkpoint": str(self.checkpoint),
        }


def run(
    run_dir: Path, *, seed: int = 0, tracker: Tracker | None = None, settings: DemoSettings | None = None
) -> DemoResult:
    """Compile the demo's program and measure it.

    Args:
        run_dir: Run directory of the compile; the same call resumes from it.
        seed: Seed of data, sampling and training.
        tracker: Receives the events of the compile.
        settings: Sizes and training options.
    """
    chosen = settings or DemoSettings()
    with dspy.context(adapter=PlainAdapter(), num_threads=chosen.num_threads):
        return _Demo(run_dir, seed, tracker, chosen).run()


def name_of(iteration: int) -> str:
    """Return the name of the program after an iteration."""
    return f"iteration {iteration}" if iteration else "warm start"


class _Demo:
    def __init__(self, run_dir: Path, seed: int, tracker: Tracker | None, settings: DemoSettings) -> None:
        self.run_dir = run_dir
        self.seed = seed
        self.tracker = tracker
        self.settings = settings
        self.seconds: dict[str, float] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.base = LocalLM(settings.base_model, max_tokens=settings.max_tokens, lora=settings.lora)
        self.test = crown.examples("test", settings.test_items, seed, settings.events)

    def run(self) -> DemoResult:
        began = time.perf_counter()
        student = crown.build()
        student.set_lm(self.base)
        demos = crown.demonstrations()
        compiled = self._compile(student, demos)  # first, because it refuses a run directory with other settings
        self.seconds["compile"] = compiled.detailed_results["seconds"]
        zero_shot = self._test("zero-shot", student)
        demonstrated = self._test(
            "demonstrated", student, crown.demonstrations(size=self.settings.shown_runs), self.settings.swap_items
        )
        results = compiled.detailed_results
        best = results["best_iteration"]
        final = self._test(name_of(best), compiled)
        swaps = {agent: self._score_without(compiled, agent) for agent in results["agents"]}
        checkpoint = save(compiled, self.run_dir / "checkpoint")
        self._save_scores(best)
        self.seconds["total"] = time.perf_counter() - began
        return DemoResult(
            seed=self.seed,
            zero_shot=zero_shot,
            demonstrated=demonstrated,
            validation=tuple(entry["score"] for entry in results["iterations"]),
            swaps=swaps,
            best_iteration=best,
            final=final,
            test_items=len(self.test),
            majority=crown.majority_baseline(self.test),
            seconds={**self.seconds, **_stage_seconds(results)},
            checkpoint=checkpoint,
            results=results,
            evaluations=self.evaluations,
        )

    def _save_scores(self, best: int) -> None:
        """Save the scores of all programs, which `sirius-dspy report` shows."""
        programs = tuple(
            ProgramScore(name, evaluation.score, len(evaluation.rewards), evaluation.interval())
            for name, evaluation in self.evaluations.items()
        )
        RunDir(self.run_dir).finish_test(HeldOutScores(programs, name_of(best)))

    def _compile(self, student: dspy.Module, demos: Mapping[str, list[dspy.Example]]) -> dspy.Module:
        settings = self.settings
        optimizer = SiriuS(
            crown.metric,
            iterations=settings.iterations,
            collect=Collect(
                samples=settings.samples,
                temperature=settings.temperature,
                demos=demos,
                warm_start=True,
            ),
            augmenter=LadderAugmenter([LabelAugmenter()], measure=False),  # the other rungs would take two minutes
            curator=Curator(max_rows=settings.max_rows, cumulative=True),
            tracker=self.tracker,
            run_dir=self.run_dir,
            seed=self.seed,
        )
        return optimizer.compile(
            student,
            trainset=crown.examples("train", settings.train_items, self.seed, settings.train_events),
            valset=crown.examples("validation", settings.validation_items, self.seed, settings.events),
        )

    def _score_without(self, compiled: dspy.Module, agent: str) -> float:
        """Return the accuracy of the trained program with one untrained agent."""
        names = compiled.detailed_results["agents"][agent]
        untrained = copy_program(compiled, dict.fromkeys(names, self.base))
        return self._test(f"untrained {agent}", untrained, size=self.settings.swap_items)

    def _test(
        self,
        name: str,
        program: dspy.Module,
        demos: Mapping[str, list[dspy.Example]] | None = None,
        size: int | None = None,
    ) -> float:
        examples, saved = self.test[:size], self.run_dir / "tests" / f"{file_name(name)}.json"
        with self._measure_time(f"test: {name}"):
            evaluation = _read_evaluation(saved, examples)
            if evaluation is None:
                evaluation = evaluate(program, examples, crown.metric, demos=demos)
                write_text(saved, json.dumps([trajectory.to_dict() for trajectory in evaluation.trajectories]))
        self.evaluations[name] = evaluation
        return evaluation.score

    @contextmanager
    def _measure_time(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def _read_evaluation(path: Path, examples: Sequence[dspy.Example]) -> Evaluation | None:
    """Return the evaluation of an earlier call, if it was on the same examples."""
    if not path.exists():
        return None
    runs = tuple(Trajectory.from_dict(record) for record in json.loads(path.read_text(encoding="utf-8")))
    is_same = [run.example_key for run in runs] == [example_key(example) for example in examples]
    return Evaluation(runs) if is_same else None


def _stage_seconds(results: Mapping[str, Any]) -> dict[str, float]:
    """Add up the seconds per stage over the iterations."""
    totals: dict[str, float] = {}
    for entry in results["iterations"][1:]:
        for stage, seconds in entry["seconds"].items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    return totals
