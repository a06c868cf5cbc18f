"""The tasks: data, programs, metric, demonstrations and oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.signatures import make_signature

from metrics.exact_word import exact_word
from metrics.whole_number import whole_number
from programs.ledger.kinds import Entries, Ledger, Shells
from programs.ledger.runs import ENTRIES_RUNS, SHELLS_RUNS, Shown
from sirius_dspy.demo import generated
from sirius_dspy.demo.generated import Split, key_of
from sirius_dspy.demo.lengths import Lengths, lengths_of
from sirius_dspy.demo.majority import best_trivial_rule
from sirius_dspy.demo.steps import AnyStep, GoldStep, as_demonstrations, check_form, output_of
from sirius_dspy.errors import DatasetError


class LedgerTeam(dspy.Module):
    """Worker, once for each part, -> Reporter, which sees only the last note."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.worker = dspy.Predict(
            make_signature("question: str, note: str, part: str -> new_note: str", ledger.noting)
        )
        self.reporter = dspy.Predict(make_signature("note: str, question: str -> answer: str", ledger.answering))

    def forward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Answer the question about one text; the prediction has `answer`."""
        note = start
        for part in parts:
            note = self.worker(question=question, note=note, part=part).new_note
        return self.reporter(note=note, question=question)

    async def aforward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        note = start
        for part in parts:
            note = (await self.worker.acall(question=question, note=note, part=part)).new_note
        return await self.reporter.acall(note=note, question=question)


class SingleReader(dspy.Module):
    """One agent, which reads the whole text, with or without a reasoning field."""

    def __init__(self, ledger: Ledger, reasoning: bool = False) -> None:
        super().__init__()
        outputs = "reasoning: str, answer: str" if reasoning else "answer: str"
        instructions = f"Note each change in order. {ledger.answering}" if reasoning else ledger.answering
        self.solver = dspy.Predict(make_signature(f"story: str, question: str -> {outputs}", instructions))
        self._ledger = ledger

    def forward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Answer the question about one text; the prediction has `answer`."""
        return self.solver(story=self._ledger.write_whole(start, parts, question), question=question)

    async def aforward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        return await self.solver.acall(story=self._ledger.write_whole(start, parts, question), question=question)


@dataclass(frozen=True)
class LedgerTask:
    """The tasks of one kind of ledger."""

    ledger: Ledger
    score: Callable[..., float]
    shown: tuple[Shown, ...]
    """Runs written by hand; their texts are in no split."""

    @property
    def name(self) -> str:
        """The name of the kind."""
        return self.ledger.name

    def build(self, single: bool = False, reasoning: bool = False) -> dspy.Module:
        """Build an untrained program without LMs.

        Args:
            single: Whether to build the single agent, `solver`, instead of `worker` and `reporter`.
            reasoning: Whether the single agent writes its reasoning before the answer.

        Raises:
            DatasetError: `reasoning` is set for the team.
        """
        check_form(single, reasoning)
        return SingleReader(self.ledger, reasoning) if single else LedgerTeam(self.ledger)

    def examples(
        self, split: Split, size: int = 100, seed: int = 0, parts: Lengths = (1, 2, 3), sentences: int = 2
    ) -> list[dspy.Example]:
        """Generate items with the inputs `start`, `parts` and `question`, and the label `answer`.

        Args:
            split: `train`, `validation` or `test`.
            size: Number of items.
            seed: Seed from 0; other seeds give other items of the same kind.
            parts: Numbers of parts of a text, for all splits or by split. Several occur equally often,
                or as often as they are listed.
            sentences: Maximum number of sentences of a part, from 1.

        Raises:
            DatasetError: An argument is invalid, or there are too few items.
        """
        lengths = lengths_of(parts, split, "parts")
        if sentences < 1:
            raise DatasetError(f"`sentences` is {sentences!r}, expected an integer from 1.")
        return generated.draw(lambda source: self._write(source.choice(lengths), sentences, source), split, size, seed)

    def metric(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """Score 1.0 for the gold name or number and nothing else, otherwise 0.0."""
        return self.score(example, prediction, trace)

    def demonstrations(
        self, single: bool = False, reasoning: bool = False, size: int | None = None
    ) -> dict[str, list[dspy.Example]]:
        """Return hand-written demonstrations for each predictor.

        Args:
            single: Whether they are for the single agent.
            reasoning: Whether the single agent writes its reasoning.
            size: Number of runs that they come from; by default, all.
        """
        check_form(single, reasoning)
        return as_demonstrations(
            step
            for run in self.shown[:size]
            for step in self._steps(run.example(self.ledger.question), run.notes, single, reasoning)
        )

    def majority_baseline(self, examples: Sequence[dspy.Example]) -> float:
        """Return the best score of a rule that keeps no ledger, from 0 to 1.

        The rules are: always the most frequent answer; the first note, which is often right in short texts; the first
        and the last name or number of the text.
        """
        return best_trivial_rule(examples, self._guess)

    def gold_steps(self, example: dspy.Example, single: bool = False, reasoning: bool = False) -> list[GoldStep]:
        """Return the steps of a run in which every agent is right.

        Raises:
            DatasetError: `reasoning` is set for the team.
        """
        check_form(single, reasoning)
        notes, note = [], example.start
        for part in example.parts:
            note = self.ledger.update(note, example.question, part)
            notes.append(note)
        return list(self._steps(example, notes, single, reasoning))

    def oracle(self, example: dspy.Example, step: AnyStep) -> bool:
        """Return whether the output of a step is right given its own inputs."""
        inputs = {name: str(value) for name, value in step.inputs.items()}
        if step.predictor == "worker":
            right = self.ledger.update(inputs["note"], inputs["question"], inputs["part"])
            return self._is_same(output_of(step, "new_note"), right)
        right = inputs["note"] if step.predictor == "reporter" else example.answer
        return self._is_same(output_of(step, "answer"), right)

    def _guess(self, example: dspy.Example) -> tuple[str, ...]:
        found = self.ledger.find_notes(" ".join(example.parts))
        return example.start, found[0], found[-1]

    def _is_same(self, reply: str, right: str) -> bool:
        if not self.ledger.is_note(right):
            return False
        return self.score(dspy.Example(answer=right), dspy.Prediction(answer=reply)) == 1.0

    def _write(self, num_parts: int, sentences: int, source: random.Random) -> dspy.Example:
        start, told = self.ledger.begin(source)
        parts, note = [], start
        for _ in range(num_parts):
            written = []
            for _ in range(source.randint(1, sentences)):
                written.append(self.ledger.tell(told, note, source))
                note = self.ledger.update(note, told.question, written[-1])
            parts.append(" ".join(written))
        key = key_of(" ".join([start, *parts, told.question]))
        example = dspy.Example(start=start, parts=parts, question=told.question, answer=note, dspy_key=key)
        return example.with_inputs("start", "parts", "question")

    def _steps(self, example: dspy.Example, notes: Sequence[str], single: bool, reasoning: bool) -> Iterator[GoldStep]:
        question, answer = example.question, {"answer": example.answer}
        if single:
            story = self.ledger.write_whole(example.start, example.parts, question)
            outputs = {"reasoning": ", ".join(notes), **answer} if reasoning else answer
            yield GoldStep("solver", {"story": story, "question": question}, outputs)
            return
        for note, part, new_note in zip([example.start, *notes], example.parts, notes, strict=False):
            yield GoldStep("worker", {"question": question, "note": note, "part": part}, {"new_note": new_note})
        yield GoldStep("reporter", {"note": notes[-1], "question": question}, answer)


entries = LedgerTask(Entries(), exact_word, ENTRIES_RUNS)
shells = LedgerTask(Shells(), whole_number, SHELLS_RUNS)
