"""The tasks: data, programs, metric, demonstrations and oracle."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import dspy
from dspy.signatures import make_signature

from programs.hops.runs import OWNER_RUNS, THING_RUNS, WORK_RUNS, Shown
from sirius_dspy.demo import generated
from sirius_dspy.demo.exact_word import exact_word, is_same_word
from sirius_dspy.demo.generated import Split, key_of
from sirius_dspy.demo.majority import best_trivial_rule
from sirius_dspy.demo.people import PEOPLE
from sirius_dspy.demo.steps import AnyStep, GoldStep, as_demonstrations, check_form, output_of
from sirius_dspy.errors import DatasetError

_CITIES = (
    "Lima", "Oslo", "Cairo", "Delhi", "Paris", "Quito", "Rome", "Seoul", "Tokyo", "Dublin",
    "Vienna", "Lisbon", "Prague", "Nairobi", "Havana", "Athens", "Warsaw", "Berlin", "Madrid", "Accra",
    "Hanoi", "Riga", "Tunis", "Zagreb", "Manila", "Bogota", "Perth", "Geneva", "Kyoto",
)  # fmt: skip
_COLORS = ("red", "blue", "green", "black", "white", "yellow", "brown", "gray", "pink", "silver")
_THINGS = ("kite", "lamp", "boat", "drum", "clock", "chair", "guitar", "camera", "tent", "mirror", "basket", "ladder")
_ANSWER = "Answer with one city."


class HopsTeam(dspy.Module):
    """Finder -> Follower, once for each further hop, -> Answerer, which sees only the last fact."""

    def __init__(self, finding: str, hops: int) -> None:
        super().__init__()
        self.finder = dspy.Predict(make_signature("context: str, question: str -> fact: str", finding))
        self.follower = dspy.Predict(
            make_signature(
                "context: str, fact: str -> next_fact: str",
                "Copy the sentence that begins with the last name of the fact.",
            )
        )
        self.answerer = dspy.Predict(make_signature("fact: str, question: str -> answer: str", _ANSWER))
        self._hops = hops

    def forward(self, context: str, question: str) -> dspy.Prediction:
        """Answer one question; the prediction has `answer`."""
        fact = self.finder(context=context, question=question).fact
        for _ in range(self._hops - 1):
            fact = self.follower(context=context, fact=fact).next_fact
        return self.answerer(fact=fact, question=question)

    async def aforward(self, context: str, question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        fact = (await self.finder.acall(context=context, question=question)).fact
        for _ in range(self._hops - 1):
            fact = (await self.follower.acall(context=context, fact=fact)).next_fact
        return await self.answerer.acall(fact=fact, question=question)


class SingleHopper(dspy.Module):
    """One agent, with or without a reasoning field."""

    def __init__(self, reasoning: bool = False) -> None:
        super().__init__()
        outputs = "reasoning: str, answer: str" if reasoning else "answer: str"
        instructions = f"First copy the sentences that answer the question. {_ANSWER}" if reasoning else _ANSWER
        self.solver = dspy.Predict(make_signature(f"context: str, question: str -> {outputs}", instructions))

    def forward(self, context: str, question: str) -> dspy.Prediction:
        """Answer one question; the prediction has `answer`."""
        return self.solver(context=context, question=question)

    async def aforward(self, context: str, question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        return await self.solver.acall(context=context, question=question)


@dataclass(frozen=True)
class HopsTask:
    """The tasks of one kind of chain."""

    name: str
    relations: tuple[str, ...]
    """What stands between the two ends of each fact of a chain."""
    question: str
    """Question about `{subject}`, the beginning of a chain."""
    finding: str
    """Instructions of the finder."""
    draw_subjects: Callable[[random.Random, int], list[str]]
    """Draws the beginnings of the chains of a text."""
    shown: tuple[Shown, ...]
    """Runs written by hand; their questions are in no split."""

    @property
    def num_hops(self) -> int:
        """Number of facts of a chain."""
        return len(self.relations)

    def build(self, single: bool = False, reasoning: bool = False) -> dspy.Module:
        """Build an untrained program without LMs.

        Args:
            single: Whether to build the single agent, `solver`, instead of `finder`, `follower` and `answerer`.
            reasoning: Whether the single agent writes its reasoning before the answer.

        Raises:
            DatasetError: `reasoning` is set for the team.
        """
        check_form(single, reasoning)
        return SingleHopper(reasoning) if single else HopsTeam(self.finding, self.num_hops)

    def examples(self, split: Split, size: int = 100, seed: int = 0, chains: int = 3) -> list[dspy.Example]:
        """Generate items with the inputs `context` and `question`, and the label `answer`.

        Args:
            split: `train`, `validation` or `test`.
            size: Number of items.
            seed: Seed from 0; other seeds give other items of the same kind.
            chains: Number of chains of facts in a text, from 1 to 8; the question asks for the end of one.

        Raises:
            DatasetError: An argument is invalid, or there are too few items.
        """
        if not 1 <= chains <= 8:
            raise DatasetError(f"`chains` is {chains!r}, expected an integer from 1 to 8.")
        return generated.draw(lambda source: self._write(chains, source), split, size, seed)

    def metric(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """Score 1.0 if the answer is the gold city and nothing else, otherwise 0.0; see `exact_word`."""
        return exact_word(example, prediction, trace)

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
            for step in _steps(run.example(self.question), run.facts, single, reasoning)
        )

    def majority_baseline(self, examples: Sequence[dspy.Example]) -> float:
        """Return the best score of a rule that follows no facts, from 0 to 1.

        The rules are: always the most frequent answer, the first and the last city of the text.
        """
        return best_trivial_rule(examples, self._guess)

    def gold_steps(self, example: dspy.Example, single: bool = False, reasoning: bool = False) -> list[GoldStep]:
        """Return the steps of a run in which every agent is right.

        Raises:
            DatasetError: `reasoning` is set for the team, or the text lacks a fact of the chain.
        """
        check_form(single, reasoning)
        facts = [_find(example.context, self._subject(example.question))]
        while len(facts) < self.num_hops and facts[-1]:
            facts.append(_find(example.context, _last_name(facts[-1])))
        if not facts[-1]:
            raise DatasetError(f"A fact is missing to answer {example.question!r}. Generate the examples.")
        return list(_steps(example, facts, single, reasoning))

    def oracle(self, example: dspy.Example, step: AnyStep) -> bool:
        """Return whether the output of a step is right given its own inputs.

        A fact after which no other follows has no right next fact.
        """
        inputs = {name: str(value) for name, value in step.inputs.items()}
        if step.predictor == "finder":
            return is_same_word(output_of(step, "fact"), _find(inputs["context"], self._subject(inputs["question"])))
        if step.predictor == "follower":
            return is_same_word(output_of(step, "next_fact"), _find(inputs["context"], _last_name(inputs["fact"])))
        right = _last_name(inputs["fact"]) if step.predictor == "answerer" else example.answer
        return is_same_word(output_of(step, "answer"), right)

    def _write(self, chains: int, source: random.Random) -> dspy.Example:
        subjects = self.draw_subjects(source, chains)
        facts = self._facts(subjects, source)
        asked = source.randrange(chains)
        question = self.question.format(subject=_lower(subjects[asked]))
        key = key_of(" ".join([*sorted(facts), question]))
        answer = _last_name(facts[(self.num_hops - 1) * chains + asked])
        source.shuffle(facts)
        example = dspy.Example(context=" ".join(facts), question=question, answer=answer, dspy_key=key)
        return example.with_inputs("context", "question")

    def _facts(self, subjects: Sequence[str], source: random.Random) -> list[str]:
        """Return the first facts of all chains, then the second ones, and so on."""
        chains = len(subjects)
        people = source.sample([name for name in PEOPLE if name not in subjects], chains * (self.num_hops - 1))
        ends = [*subjects, *people, *source.sample(_CITIES, chains)]
        return [
            f"{ends[hop * chains + chain]} {relation} {ends[(hop + 1) * chains + chain]}."
            for hop, relation in enumerate(self.relations)
            for chain in range(chains)
        ]

    def _guess(self, example: dspy.Example) -> tuple[str, ...]:
        cities = re.findall(rf"{re.escape(self.relations[-1])} (\w+)", example.context)
        return cities[0], cities[-1]

    def _subject(self, question: str) -> str:
        before, after = self.question.split("{subject}")
        return question.removeprefix(before).removesuffix(after)


def _steps(example: dspy.Example, facts: Sequence[str], single: bool, reasoning: bool) -> Iterator[GoldStep]:
    asked = {"context": example.context, "question": example.question}
    answer = {"answer": example.answer}
    if single:
        yield GoldStep("solver", asked, {"reasoning": " ".join(facts), **answer} if reasoning else answer)
        return
    yield GoldStep("finder", asked, {"fact": facts[0]})
    for fact, next_fact in pairwise(facts):
        yield GoldStep("follower", {"context": example.context, "fact": fact}, {"next_fact": next_fact})
    yield GoldStep("answerer", {"fact": facts[-1], "question": example.question}, answer)


def _find(context: str, beginning: str) -> str:
    """Return the sentence that begins with a name; empty if there is none."""
    sentences = (f"{sentence}." for sentence in context.removesuffix(".").split(". "))
    return next(
        (text for text in sentences if beginning and text.casefold().startswith(f"{beginning} ".casefold())), ""
    )


def _last_name(fact: str) -> str:
    return fact.strip().rstrip(".").rpartition(" ")[2]


def _lower(subject: str) -> str:
    """Write a subject as it stands within a sentence: `The red kite` without its capital letter."""
    return subject.replace("The ", "the ", 1)


def _people(source: random.Random, size: int) -> list[str]:
    return source.sample(PEOPLE, size)


def _things(source: random.Random, size: int) -> list[str]:
    pairs = zip(source.sample(_COLORS, size), source.sample(_THINGS, size), strict=True)
    return [f"The {color} {thing}" for color, thing in pairs]


two_hops = HopsTask(
    "two_hops",
    ("works for", "lives in"),
    "In which city does the boss of {subject} live?",
    "Copy the sentence that says for whom the person works.",
    _people,
    WORK_RUNS,
)

two_hops_things = HopsTask(
    "two_hops_things",
    ("belongs to", "lives in"),
    "In which city is {subject}?",
    "Copy the sentence that says to whom the thing belongs.",
    _things,
    THING_RUNS,
)

three_hops = HopsTask(
    "three_hops",
    ("belongs to", "works for", "lives in"),
    "In which city does the boss of the owner of {subject} live?",
    "Copy the sentence that says to whom the thing belongs.",
    _things,
    OWNER_RUNS,
)
