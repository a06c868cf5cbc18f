"""Small generated tasks with exact answers, each for a team of agents and for a single agent.

    family_relationships   analyst -> solver: what a family story says of two people, then one word
    chain_sum              expert -> calculator -> summarizer: a sum or difference of two numbers
    leg_counting           expert -> calculator -> summarizer: the legs of some animals
    simple_equations       algebraist -> calculator: an equation with one unknown

The team of three has the structure of the paper's college programs: each agent sees the question and all that was
written so far. Items come from reasoning-gym; splits never share a question, see `sirius_dspy.demo.generated`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.signatures import make_signature

from metrics.exact_word import exact_word
from metrics.whole_number import whole_number
from sirius_dspy import AgentGraph
from sirius_dspy.demo import generated
from sirius_dspy.demo.generated import Split, key_of
from sirius_dspy.demo.majority import majority_baseline
from sirius_dspy.errors import DatasetError
from sirius_dspy.repair.demos import RepairDemos

__all__ = [
    "ChainSumTeam",
    "FamilyRelationshipsTeam",
    "LegCountingTeam",
    "ReasoningTask",
    "SimpleEquationsTeam",
    "chain_sum",
    "family_relationships",
    "leg_counting",
    "simple_equations",
]

_RELATION = "Answer with one word, such as father, mother, son, husband or wife."
_NUMBER = "Write only the final number."
_ALONE = "Work it out. End with a line 'Answer:' and the number."


def _agent(signature: str, instructions: str) -> dspy.Predict:
    return dspy.Predict(make_signature(signature, instructions))


class FamilyRelationshipsTeam(AgentGraph):
    """Analyst -> Solver; `facts` is the only thing that the solver knows of the story."""

    def __init__(self) -> None:
        super().__init__(
            "context, question -> answer",
            {
                "analyst": _agent(
                    "context: str, question: str -> facts: str", "Write what the context says about the two people."
                ),
                "solver": _agent("facts: str, question: str -> answer: str", _RELATION),
            },
        )


class ChainSumTeam(AgentGraph):
    """Expert -> Calculator -> Summarizer."""

    def __init__(self) -> None:
        super().__init__("question -> answer", _three_agents("Say in words what must be calculated."))


class LegCountingTeam(AgentGraph):
    """Expert -> Calculator -> Summarizer."""

    def __init__(self) -> None:
        super().__init__("question -> answer", _three_agents("Say how many legs one animal of each kind has."))


class SimpleEquationsTeam(AgentGraph):
    """Algebraist -> Calculator."""

    def __init__(self) -> None:
        super().__init__(
            "question -> answer",
            {
                "algebraist": _agent(
                    "question: str -> isolated: str", "Rewrite the equation so that the letter stands alone."
                ),
                "calculator": _agent("question: str, isolated: str -> answer: str", _NUMBER),
            },
        )


def _three_agents(task_of_expert: str) -> dict[str, dspy.Module]:
    return {
        "expert": _agent("question: str -> facts: str", task_of_expert),
        "calculator": _agent("question: str, facts: str -> working: str", "Write the calculation with its result."),
        "summarizer": _agent("question: str, facts: str, working: str -> answer: str", _NUMBER),
    }


@dataclass(frozen=True)
class Slip:
    """How a run goes wrong, and what a critic says."""

    predictor: str
    field: str
    wrong: str
    later: Mapping[str, str]
    """What the agents after it make of that, by field."""
    feedback: str


@dataclass(frozen=True)
class ReasoningTask:
    """One task: data, programs, metric."""

    name: str
    """Of reasoning-gym's generator."""
    settings: Mapping[str, Any]
    """Of the generator: small numbers, for small models. Larger ones are the dial for stronger models, e.g.
    `dataclasses.replace(chain_sum, settings={...})`."""
    read: Callable[[dict[str, Any]], dspy.Example | None]
    """Turns a generated item into an example, or `None` to leave it out."""
    metric: Callable[..., float]
    team: Callable[[], AgentGraph]
    alone: tuple[str, str]
    """Signature and instructions of the single agent. It has one output, since small models miss formats with two, and
    writes its work into that: the metrics of numbers read the last line that begins with `Answer:`."""
    runs: Sequence[Mapping[str, str]]
    """Runs written by hand: every field that some agent reads or writes, `key`, and `alone`, a single agent's reply."""
    slips: Sequence[Slip] = ()
    """One for each shown run, for demonstrations of repairs."""

    def build(self, single: bool = False) -> AgentGraph:
        """The untrained program with no LM set: the team, or one agent `solver` that does all of it."""
        if not single:
            return self.team()
        return AgentGraph(self.alone[0], {"solver": _agent(*self.alone)})

    def examples(self, split: Split, size: int = 100, seed: int = 0) -> list[dspy.Example]:
        """Items with the program's inputs, the label `answer`, and `dspy_key`, the hash of what makes the question.

        See `sirius_dspy.demo.generated.examples` for the promise and the errors.
        """
        return generated.examples(self.name, dict(self.settings), self._read_unshown, split, size, seed)

    def demonstrations(self, single: bool = False) -> dict[str, list[dspy.Example]]:
        """Four demonstrations for each predictor, written by hand; their questions are in no split.

        They serve cold starts and the few-shot baseline; training prompts never have any.
        """
        wirings = self.build(single).wirings
        runs = [{**run, "answer": run["alone"]} for run in self.runs] if single else self.runs
        return {
            name: [
                dspy.Example(
                    **{field: run[field] for field in [*wiring.reads.values(), *wiring.writes.values()]}
                ).with_inputs(*wiring.reads.values())
                for run in runs
            ]
            for name, wiring in wirings.items()
        }

    def repair_demonstrations(self) -> RepairDemos:
        """Repairs of the shown runs: without them, a 135M model repairs next to nothing.

        So small a critic cannot hint; it says what is right, and the agent whose work that is writes it down.

        Raises:
            DatasetError: None were written for this task.
        """
        if not self.slips:
            raise DatasetError(f"There are no demonstrations of repairs for {self.name!r}. Repair without them.")
        critique, rephrase = [], []
        regenerate: dict[str, list[dspy.Example]] = defaultdict(list)
        for run, slip in zip(self.runs, self.slips, strict=True):
            critique.append(self._critique(run, slip))
            asked = {field: run[field] for field in self.build().wirings[slip.predictor].reads.values()}
            right = {slip.field: run[slip.field]}
            regenerate[slip.predictor].append(dspy.Example(**asked, feedback=slip.feedback, **right))
            text = run[slip.field]
            rephrase.append(dspy.Example(task=_list_fields(run, ["question"]), text=text, rewritten=text))
        return RepairDemos(critique=critique, regenerate=regenerate, rephrase=rephrase)

    def _critique(self, run: Mapping[str, str], slip: Slip) -> dspy.Example:
        wirings = self.build().wirings
        wrong = {**run, slip.field: slip.wrong, **slip.later}
        written = {name: [wrong[field] for field in wiring.writes.values()] for name, wiring in wirings.items()}
        return dspy.Example(
            task=_list_fields(run, ["question"]),
            team="\n\n".join(f"[{name}]\n{' '.join(texts)}" for name, texts in written.items()),
            agent=slip.predictor,
            agent_inputs=_list_fields(wrong, wirings[slip.predictor].reads.values()),
            agent_answer=slip.wrong,
            correct_answer=run["answer"],
            feedback=slip.feedback,
        )

    def majority_baseline(self, examples: Sequence[dspy.Example]) -> float:
        """Share of the examples that the most frequent answer gets right."""
        return majority_baseline(examples)

    def _read_unshown(self, item: dict[str, Any]) -> dspy.Example | None:
        example = self.read(item)
        is_shown = example is not None and any(example.dspy_key == run["key"] for run in self.runs)
        return None if is_shown else example


def _list_fields(values: Mapping[str, str], fields: Iterable[str]) -> str:
    return "\n".join(f"{field}: {values[field]}" for field in fields)


# Reading items


def _family(item: dict[str, Any]) -> dspy.Example | None:
    if item["answer"].endswith("-in-law"):  # the generator gives these the wrong way round
        return None
    context, _, asked = item["question"].partition("\n\n")
    question = asked.partition("?")[0] + "?"  # what follows is how to reply, which is the solver's instruction
    return _example(item["answer"], context, question=question, context=context)


def _sum(item: dict[str, Any]) -> dspy.Example:
    expression = item["metadata"]["expression"]
    return _example(item["answer"], _sum_key(expression), question=f"{expression} =")


def _sum_key(expression: str) -> str:
    """The same for `3 + 4` and `4 + 3`."""
    return expression if "-" in expression else " + ".join(sorted(expression.split(" + ")))


def _legs(item: dict[str, Any]) -> dspy.Example:
    animals = item["metadata"]["animals"]
    question = item["question"].rpartition("Now, how")[2].strip()
    return _example(item["answer"], str(sorted(animals.items())), question=f"How {question}")


def _equation(item: dict[str, Any]) -> dspy.Example:
    return _example(item["answer"], _equation_key(item["metadata"]["equation"]), question=item["question"])


def _equation_key(equation: str) -> str:
    """The same for `b + 3 = 11` and `k + 3 = 11`."""
    return re.sub(r"[a-z]", "x", equation)


def _example(answer: str, key: str, **inputs: str) -> dspy.Example:
    return dspy.Example(**inputs, answer=answer, dspy_key=key_of(key)).with_inputs(*inputs)


# Runs written by hand


def _family_run(context: str, asked: tuple[str, str], facts: str, answer: str) -> dict[str, str]:
    question = f"What is {asked[0]} to {asked[1]}?"
    return {
        "context": context,
        "question": question,
        "facts": facts,
        "answer": answer,
        "alone": answer,
        "key": key_of(context),
    }


def _sum_run(expression: str, facts: str, answer: str) -> dict[str, str]:
    working = f"{expression} = {answer}"
    return {
        "question": f"{expression} =",
        "facts": facts,
        "working": working,
        "answer": answer,
        "alone": f"{working}\nAnswer: {answer}",
        "key": key_of(_sum_key(expression)),
    }


def _legs_run(animals: str, facts: str, working: str, answer: str) -> dict[str, str]:
    question = f"How many legs are there in total if you have {animals}?"
    return {
        "question": question,
        "facts": facts,
        "working": working,
        "answer": answer,
        "alone": f"{facts} {working}\nAnswer: {answer}",
        "key": key_of(animals),
    }


def _equation_run(letter: str, equation: str, isolated: str, answer: str) -> dict[str, str]:
    question = f"Solve for {letter}: {equation}"
    return {
        "question": question,
        "isolated": isolated,
        "answer": answer,
        "alone": f"{isolated}\nAnswer: {answer}",
        "key": key_of(_equation_key(equation)),
    }


_FAMILY_RUNS = (  # with names that the generator does not have
    _family_run(
        "Bruno is married to Clara. They have a child called Hugo.",
        ("Bruno", "Hugo"),
        "Hugo is a child of Bruno and Clara. Bruno is a man.",
        "father",
    ),
    _family_run(
        "Omar is married to Yasmin. They have a child called Karim. Karim is married to Leila.",
        ("Karim", "Yasmin"),
        "Karim is a child of Omar and Yasmin. Karim is a man.",
        "son",
    ),
    _family_run(
        "Pavel is married to Irina. They have a child called Boris.",
        ("Irina", "Pavel"),
        "Irina is married to Pavel. Irina is a woman.",
        "wife",
    ),
    _family_run(
        "Diego is married to Paloma. They have a child called Mateo. Mateo is married to Ines.",
        ("Paloma", "Mateo"),
        "Mateo is a child of Diego and Paloma. Paloma is a woman.",
        "mother",
    ),
)

_SUM_RUNS = (
    _sum_run("8 + 5", "Add 5 to 8.", "13"),
    _sum_run("46 - 13", "Take 13 away from 46.", "33"),
    _sum_run("3 - 9", "Take 9 away from 3.", "-6"),
    _sum_run("52 + 27", "Add 27 to 52.", "79"),
)


def _sum_slip(run: Mapping[str, str], wrong: str) -> Slip:
    expression = run["question"].removesuffix(" =")
    later = {"answer": wrong}
    return Slip("calculator", "working", f"{expression} = {wrong}", later, f"{expression} is {run['answer']}.")


_SUM_SLIPS = tuple(_sum_slip(run, wrong) for run, wrong in zip(_SUM_RUNS, ("12", "43", "6", "719"), strict=True))

_LEGS_RUNS = (  # with animals that the generator does not have
    _legs_run("3 goats", "A goat has 4 legs.", "3 * 4 = 12", "12"),
    _legs_run("2 swans, 1 rabbit", "A swan has 2 legs. A rabbit has 4 legs.", "2 * 2 + 1 * 4 = 8", "8"),
    _legs_run("1 mosquito, 3 geckos", "A mosquito has 6 legs. A gecko has 4 legs.", "1 * 6 + 3 * 4 = 18", "18"),
    _legs_run("2 eels", "An eel has 0 legs.", "2 * 0 = 0", "0"),
)

_EQUATION_RUNS = (
    _equation_run("k", "k + 6 = 15", "k = 15 - 6", "9"),
    _equation_run("w", "w - 4 = 3", "w = 3 + 4", "7"),
    _equation_run("d", "9 - d = 4", "d = 9 - 4", "5"),
    _equation_run("p", "2 - p = -10", "p = 2 + 10", "12"),
)


# The tasks

family_relationships = ReasoningTask(
    "family_relationships",
    {"min_family_size": 3, "max_family_size": 4},
    _family,
    exact_word,
    FamilyRelationshipsTeam,
    ("context: str, question: str -> answer: str", _RELATION),
    _FAMILY_RUNS,
)

chain_sum = ReasoningTask(
    "chain_sum",
    {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    _sum,
    whole_number,
    ChainSumTeam,
    ("question: str -> answer: str", _ALONE),
    _SUM_RUNS,
    _SUM_SLIPS,
)

leg_counting = ReasoningTask(
    "leg_counting",
    {"min_animals": 1, "max_animals": 2, "min_instances": 1, "max_instances": 3},
    _legs,
    whole_number,
    LegCountingTeam,
    ("question: str -> answer: str", _ALONE),
    _LEGS_RUNS,
)

simple_equations = ReasoningTask(
    "simple_equations",
    {  # values to 20: with 9, there are only 243 equations, too few to split
        "min_terms": 2,
        "max_terms": 2,
        "min_value": 1,
        "max_value": 20,
        "operators": ("+", "-"),
        "operators_weights": (0.5, 0.5),
    },
    _equation,
    whole_number,
    SimpleEquationsTeam,
    ("question: str -> answer: str", _ALONE),
    _EQUATION_RUNS,
)
