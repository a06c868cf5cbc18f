"""Solved runs of other examples, the nearest first: demonstrations for a run that failed."""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import dspy

from sirius_dspy.errors import UnreadableValueError
from sirius_dspy.plain import example_key, readable, to_plain
from sirius_dspy.program import predictor_names, restore_values, signature_of
from sirius_dspy.repair.leak import split_sentences
from sirius_dspy.repair.wording import as_written, bare
from sirius_dspy.trajectory import Step, Trajectory, Values

REASONING = "reasoning"
"""The output field in which DSPy's modules let an agent think before it writes the others."""

MOST = 2000
"""Runs that are kept: enough to find near ones, few enough to compare with each."""


class _Solved(NamedTuple):
    trajectory: Trajectory
    words: frozenset[str]
    """Of its example."""
    label: str | float | None
    """Of its example; see `only_label`."""


class SolvedRuns:
    """Solved runs with the words of their examples.

    Nearness is the share of common words, rare ones counting more (cosine similarity of TF-IDF weights without the term
    frequency). No model is needed for it.

    Args:
        read: Returns successful runs, with their examples. It is called when they are first asked for.
    """

    def __init__(self, read: Callable[[], Iterable[tuple[Trajectory, dspy.Example]]] = tuple) -> None:
        self._read_runs: Callable[[], Iterable[tuple[Trajectory, dspy.Example]]] | None = read
        self._runs: list[_Solved] = []
        self._counts: Counter[str] = Counter()
        self._shares: dict[tuple[str, int], float | None] = {}
        self._copies: dict[tuple[str, str], float] = {}
        self._reading = threading.Lock()  # many repairs ask at once

    def __getstate__(self) -> dict[str, Any]:
        """What a worker in another process gets: the runs, which only the caller can read."""
        self._read()
        return {name: value for name, value in vars(self).items() if name != "_reading"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _reading=threading.Lock())

    def __len__(self) -> int:
        return len(self._read())

    def _read(self) -> list[_Solved]:
        with self._reading:
            if self._read_runs is not None:
                self._runs = [
                    _Solved(trajectory, _words(example), only_label(example))
                    for trajectory, example in islice(self._read_runs(), MOST)
                ]
                self._counts = Counter(word for run in self._runs for word in run.words)
                self._read_runs = None
            return self._runs

    def find_nearest(self, example: dspy.Example) -> list[Trajectory]:
        """Sort the runs of other examples by nearness, the nearest first."""
        words, key = _words(example), example_key(example)
        others = [run for run in self._read() if run.trajectory.example_key != key]
        others.sort(key=lambda run: (-self._similarity(words, run.words), run.trajectory.id))
        return [run.trajectory for run in others]

    def label_share(self, predictor: str, later: int) -> float | None:
        """Return the share of the runs in which a step wrote the label of its example, and nothing else.

        Args:
            predictor: The step's.
            later: Number of steps of the same predictor that follow it in its run. Steps that ran in parallel are in
                the order in which they began, so for these the share is a mean over them.

        Returns:
            The share among the runs that have this step, and an example with one label that is a text or a number;
            `None` if there are none.
        """
        key = (predictor, later)
        if key not in self._shares:
            self._shares[key] = _share([_wrote(run, predictor, later) for run in self._read() if run.label is not None])
        return self._shares[key]

    def copy_share(self, predictor: str, name: str) -> float:
        """Return the share of the steps of a predictor that wrote a sentence of one of their inputs, and nothing else.

        Args:
            predictor: The steps' in solved runs.
            name: Of the input field.
        """
        key = (predictor, name)
        if key not in self._copies:
            steps = (step for run in self._read() for step in run.trajectory.steps if step.predictor == predictor)
            self._copies[key] = _share([_copied(step, name) for step in steps]) or 0.0
        return self._copies[key]

    def find_demos(self, program: dspy.Module, example: dspy.Example, number: int) -> dict[str, list[dspy.Example]]:
        """Make demonstrations of the nearest runs: of each predictor, its steps in them.

        Args:
            program: Its predictors are demonstrated.
            example: The one to find near runs for.
            number: Demonstrations per predictor at most; a run gives one of each.
        """
        nearest = self.find_nearest(example)
        demos: dict[str, list[dspy.Example]] = {}
        for name, predictor in predictor_names(program).items():
            signature = signature_of(predictor)
            steps = (step for run in nearest if (step := _step_of(run, name)) is not None)
            made = (demo for step in steps if (demo := _demo(step, signature)) is not None)
            if chosen := [demo for _, demo in zip(range(number), made, strict=False)]:
                demos[name] = chosen[::-1]  # the nearest one stands last, next to the question
        return demos

    def _similarity(self, one: frozenset[str], other: frozenset[str]) -> float:
        norm = math.sqrt(self._weight(one) * self._weight(other))
        return self._weight(one & other) / norm if norm else 0.0

    def _weight(self, words: frozenset[str]) -> float:
        total = len(self._runs) + 1
        return sum(math.log(total / (self._counts[word] + 0.5)) ** 2 for word in words)


def only_label(example: dspy.Example) -> str | float | None:
    """Return the label of an example that has one, which is a text or a number; otherwise `None`."""
    labels = list(readable(to_plain(example.labels())).values())
    label = labels[0] if len(labels) == 1 else None
    is_usable = bool(label.strip()) if isinstance(label, str) else type(label) in (int, float)
    return label if is_usable else None


def written_values(outputs: Values | None) -> list[Any]:
    """Return the outputs of a step without its thoughts."""
    return [value for name, value in (outputs or {}).items() if name != REASONING]


def _share(found: Sequence[bool | None]) -> float | None:
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def _wrote(run: _Solved, predictor: str, later: int) -> bool | None:
    """Whether this step of the run wrote the label; `None` if the run does not have the step."""
    steps = [step for step in run.trajectory.steps if step.predictor == predictor]
    if later >= len(steps):
        return None
    values = written_values(steps[-1 - later].outputs)
    is_text = len(values) == 1 and type(values[0]) in (str, int, float)
    return is_text and bare(as_written(values[0])) == bare(as_written(run.label))


def _copied(step: Step, name: str) -> bool:
    values = written_values(step.outputs)
    written = {bare(sentence) for sentence in split_sentences({name: step.inputs.get(name)})}
    return len(values) == 1 and isinstance(values[0], str) and bare(values[0]) in written


def _words(example: dspy.Example) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", str(readable(to_plain(example.inputs()))).casefold()))


def _step_of(run: Trajectory, predictor: str) -> Step | None:
    """Return a step that may be shown: of several, another one in each run."""
    steps: Sequence[Step] = [step for step in run.taught_steps if step.predictor == predictor and step.outputs]
    return steps[int(run.id[:8], 16) % len(steps)] if steps else None


def _demo(step: Step, signature: type[dspy.Signature]) -> dspy.Example | None:
    values: dict[str, Any] = {**step.inputs, **(step.outputs or {})}
    if not set(signature.fields) <= set(values):
        return None
    try:
        return dspy.Example(**restore_values({name: values[name] for name in signature.fields}, signature.fields))
    except UnreadableValueError:
        return None
