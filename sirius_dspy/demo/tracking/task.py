"""Tracking tasks: their data, programs, metric, demonstrations and oracle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from sirius_dspy.demo import generated
from sirius_dspy.demo.exact_word import exact_word, is_same_word
from sirius_dspy.demo.generated import Split
from sirius_dspy.demo.lengths import Lengths, lengths_of
from sirius_dspy.demo.majority import best_trivial_rule
from sirius_dspy.demo.steps import AnyStep, GoldStep, as_demonstrations, check_form, output_of
from sirius_dspy.demo.tracking.programs import SingleTracker, write_whole
from sirius_dspy.demo.tracking.sizes import SIZE, build_team, check_size
from sirius_dspy.demo.tracking.story import write_story
from sirius_dspy.demo.tracking.team_steps import is_right, team_steps
from sirius_dspy.demo.tracking.world import World
from sirius_dspy.errors import DatasetError


@dataclass(frozen=True)
class Shown:
    """A run that was written by hand.

    Attributes:
        start: Holder at first.
        question: Question of the story.
        told: For each part, its text, its event as a bare sentence and the holder after it.
    """

    start: str
    question: str
    told: tuple[tuple[str, str, str], ...]

    @property
    def example(self) -> dspy.Example:
        """The example of this run."""
        parts = [part for part, _, _ in self.told]
        example = dspy.Example(start=self.start, parts=parts, question=self.question, answer=self.told[-1][2])
        return example.with_inputs("start", "parts", "question")


@dataclass(frozen=True)
class TrackingTask:
    """The tasks of one world."""

    world: World
    shown: tuple[Shown, ...]
    """Runs written by hand; their questions are in no split."""

    @property
    def name(self) -> str:
        """The name of the world."""
        return self.world.name

    def build(self, single: bool = False, reasoning: bool = False, agents: int = SIZE) -> dspy.Module:
        """Build an untrained program without LMs.

        Args:
            single: Whether to build the single agent, `solver`, instead of a team, whatever `agents` is.
            reasoning: Whether the single agent writes its reasoning before the answer.
            agents: Number of agents of the team, from 2 to 5; see `sirius_dspy.demo.tracking.sizes`. By default, they
                are `reader`, `tracker` and `reporter`.

        Raises:
            DatasetError: `reasoning` is set for the team, or `agents` is no size of a team.
        """
        check_form(single, reasoning)
        check_size(agents)
        return SingleTracker(self.world, reasoning) if single else build_team(self.world, agents)

    def examples(
        self,
        split: Split,
        size: int = 100,
        seed: int = 0,
        events: Lengths = (1, 2, 3),
        holders: int = 4,
    ) -> list[dspy.Example]:
        """Generate stories with the inputs `start`, `parts` and `question`, and the label `answer`.

        Args:
            split: `train`, `validation` or `test`. No story is in two of them, for any seeds, sizes and settings.
            size: Number of stories.
            seed: Seed from 0; other seeds give other stories of the same kind.
            events: Numbers of events of a story, for all splits or by split. Several occur equally often, or as often
                as they are listed.
            holders: Number of different holders in a story, from 3.

        Raises:
            DatasetError: An argument is invalid, or there are too few stories.
        """
        self._check_holders(holders)
        lengths = lengths_of(events, split, "events")
        return generated.draw(
            lambda source: write_story(self.world, holders, source.choice(lengths), source), split, size, seed
        )

    def metric(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """Score 1.0 if the answer is the gold holder and nothing else, otherwise 0.0; see `exact_word`."""
        return exact_word(example, prediction, trace)

    def demonstrations(
        self, single: bool = False, reasoning: bool = False, size: int | None = None, agents: int = SIZE
    ) -> dict[str, list[dspy.Example]]:
        """Return hand-written demonstrations for each predictor.

        Args:
            single: Whether they are for the single agent.
            reasoning: Whether the single agent writes its reasoning.
            size: Number of runs that they come from; by default, all.
            agents: Number of agents of the team.
        """
        check_form(single, reasoning)
        check_size(agents)
        runs = self.shown[:size]
        if not single:
            return as_demonstrations(
                step for run in runs for step in team_steps(self.world, run.start, run.question, run.told, agents)
            )
        return as_demonstrations(self._alone(run.example, _reasoning(run.told), reasoning) for run in runs)

    def majority_baseline(self, examples: Sequence[dspy.Example]) -> float:
        """Return the best score of a rule that follows no story, from 0 to 1.

        The rules are: always the most frequent answer; the holder at first, which is often right in short stories; the
        first or the second holder that the last event names.
        """
        return best_trivial_rule(examples, self._guess)

    def gold_steps(
        self, example: dspy.Example, single: bool = False, reasoning: bool = False, agents: int = SIZE
    ) -> list[GoldStep]:
        """Return the steps of a run in which every agent is right.

        Raises:
            DatasetError: `build` refuses the form, or a part has no event.
        """
        check_form(single, reasoning)
        check_size(agents)
        told = list(self._tell(example))
        if single:
            return [self._alone(example, _reasoning(told), reasoning)]
        return list(team_steps(self.world, example.start, example.question, told, agents))

    def oracle(self, example: dspy.Example, step: AnyStep) -> bool:
        """Return whether the output of a step is right given its own inputs.

        An event that cannot be read moves nothing.
        """
        if step.predictor == "solver":
            return is_same_word(output_of(step, "answer"), example.answer)
        return is_right(self.world, step)

    def _guess(self, example: dspy.Example) -> tuple[str, ...]:
        return (example.start, *(self.world.read(example.parts[-1]) or ("", "")))

    def _tell(self, example: dspy.Example) -> Iterator[tuple[str, str, str]]:
        holder = example.start
        for part in example.parts:
            event = self.world.read(part)
            if event is None:
                raise DatasetError(f"The part {part!r} has no event of the world {self.name!r}. Generate the examples.")
            holder = self.world.move(holder, event)
            yield part, self.world.write(event), holder

    def _alone(self, example: dspy.Example, text: str, reasoning: bool) -> GoldStep:
        story = write_whole(self.world, example.start, example.parts)
        outputs = {"reasoning": text} if reasoning else {}
        inputs = {"story": story, "question": example.question}
        return GoldStep("solver", inputs, {**outputs, "answer": example.answer})

    def _check_holders(self, holders: int) -> None:
        if not 3 <= holders <= len(self.world.holders):
            raise DatasetError(f"`holders` is {holders!r}, expected an integer from 3 to {len(self.world.holders)}.")


def _reasoning(told: Iterable[tuple[str, str, str]]) -> str:
    """Write what the team writes: each event, and the holder after it."""
    return " ".join(f"{event} {holder}." for _, event, holder in told)
