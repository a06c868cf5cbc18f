"""College Physics and College Chemistry: Physicist (or Chemist) -> Mathematician -> Summarizer.

The mathematician sees the question and the expert's explanation, the summarizer sees the question and both. Questions
come from MMLU, TheoremQA (physics only) and GPQA, in the paper's ratio of two to one, where twins stay together.

References:
    SiriuS (arXiv:2502.04780), section 3.1 and Tables 1 and 6. The wording of all prompts is ours. The authors did not
    publish their split, so that only its sizes can be the same.
"""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import dspy
from dspy.signatures import make_signature

from metrics import choice, theoremqa
from programs import college_data
from programs.college_data import Item, Source, Subject
from sirius_dspy import Agent, AgentGraph
from sirius_dspy.demo.generated import Split
from sirius_dspy.demo.majority import majority_baseline
from sirius_dspy.errors import DatasetError

__all__ = ["CollegeChemistry", "CollegePhysics", "build", "examples", "majority_baseline", "metric", "parse"]

Faulty = Literal["keep", "drop", "mark"]

_SOURCES: tuple[Source, ...] = ("mmlu", "theoremqa", "gpqa")
_VALIDATION_SHARE = 0.2
"""Of the paper's training items; it had no validation set."""

_FORMS = {
    "choice": "the letter of the right option",
    "option": "the letter of the right option, such as (a)",
    "bool": "True or False",
    "integer": "a whole number",
    "float": "a number",
    "list of integer": "a list of whole numbers, such as [1, 2]",
    "list of float": "a list of numbers, such as [1.5, 2]",
}
"""Answer type to what the summarizer is told of it."""

_EXPERT = """You are the {expert} in a team that works on a question of a college {field} course.
Name the concepts, laws and formulas that the question rests on, and what each symbol in them stands for.
Do not calculate anything and do not answer the question: that is the work of your colleagues."""

_MATHEMATICIAN = """You are the mathematician in a team that works on a question of a college {field} course.
Start from what the {expert} explained. Write down the equations for this case and solve them step by step."""

_SUMMARIZER = """You have the last word in a team that works on a question of a college {field} course.
Check what your colleagues wrote against the question, put right what is wrong, and decide.
End with a line that holds `Answer:` and the answer in the requested form, nothing else."""

_ALONE = """Work on a question of a college {field} course.
Name the laws that it rests on, solve it step by step, and decide.
End with a line that holds `Answer:` and the answer in the requested form, nothing else."""


def _team(field: str, expert: str) -> dict[str, Agent]:
    def agent(signature: str, instructions: str, role: str) -> Agent:
        return Agent(dspy.Predict(make_signature(signature, instructions.format(field=field, expert=expert))), role)

    return {
        expert: agent("question: str -> concepts: str", _EXPERT, "explains the concepts"),
        "mathematician": agent(
            "question: str, concepts: str -> solution: str", _MATHEMATICIAN, "sets up and solves the equations"
        ),
        "summarizer": agent(
            "question: str, concepts: str, solution: str, answer_form: str -> answer: str", _SUMMARIZER, "decides"
        ),
    }


class CollegePhysics(AgentGraph):
    """Physicist -> Mathematician -> Summarizer."""

    def __init__(self) -> None:
        super().__init__("question, answer_form -> answer", _team("physics", "physicist"))


class CollegeChemistry(AgentGraph):
    """Chemist -> Mathematician -> Summarizer."""

    def __init__(self) -> None:
        super().__init__("question, answer_form -> answer", _team("chemistry", "chemist"))


def build(subject: Subject, single: bool = False) -> AgentGraph:
    """The untrained program with no LM set: the team of three, or one agent `solver` that does all of it.

    Raises:
        DatasetError: The subject is unknown.
    """
    _check_subject(subject)
    if not single:
        return CollegePhysics() if subject == "physics" else CollegeChemistry()
    signature = make_signature("question: str, answer_form: str -> answer: str", _ALONE.format(field=subject))
    return AgentGraph("question, answer_form -> answer", {"solver": dspy.Predict(signature)})


def metric(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    """Score 1.0 if the reply states the gold answer, and 0.0 otherwise: a letter, or TheoremQA's comparison.

    Raises:
        DatasetError: The example has no gold answer of its type.
    """
    is_choice = example.get("dspy_answer_type") == "choice"
    return choice.choice(example, prediction) if is_choice else theoremqa.theoremqa(example, prediction)


def parse(example: dspy.Example, text: str) -> theoremqa.Answer | None:
    """The answer that a reply to an example states; `None` if it cannot be parsed, which is counted on its own."""
    kind = example.get("dspy_answer_type")
    return choice.parse(text) if kind == "choice" else theoremqa.parse(text, kind)


def examples(
    subject: Subject,
    split: Split,
    size: int | None = None,
    seed: int = 0,
    *,
    sources: Sequence[Source] = _SOURCES,
    mmlu: str | Path | None = None,
    theoremqa: str | Path | None = None,
    gpqa: str | Path | None = None,
    redux: str | Path | None = None,
    drop_pictures: bool = False,
    faulty: Faulty = "keep",
    option_seed: int | None = None,
) -> list[dspy.Example]:
    """Questions with the inputs `question` and `answer_form`, and the label `answer`.

    No agent is shown what begins with `dspy_`: `dspy_key` (equal for questions that belong together), `dspy_source`,
    `dspy_answer_type`, `dspy_picture`, and `dspy_fault` where faults were asked for.

    Each source is split for itself: two thirds of its items, rounded down, for training as in the paper, a fifth of
    them set apart for validation, and the rest for testing. Items that are left out are left out after splitting, so
    that all others stay where they are. The split depends on the seed, so never compare runs of different seeds item by
    item, nor train with one and test with another.

    Args:
        subject: `physics` or `chemistry`.
        split: `train`, `validation` or `test`.
        size: Number of items from a seeded order that mixes the sources; `None` takes all.
        seed: Of split and order.
        sources: Which of `mmlu`, `theoremqa` (physics only) and `gpqa` to take. If GPQA cannot be had and is not named
            by `gpqa`, a warning says so, and the others are used.
        mmlu: A local CSV instead of the hub.
        theoremqa: A local JSON instead of the hub.
        gpqa: A local CSV instead of the hub.
        redux: A local CSV of MMLU-Redux instead of the hub.
        drop_pictures: Leave out questions that cannot be answered without their picture.
        faulty: What to do with MMLU questions that MMLU-Redux found faulty: `keep` them, `drop` them, or `mark` all
            questions in `dspy_fault` (`ok`, a fault, or `unchecked`).
        option_seed: Permutes the options of each question; `None` leaves those of MMLU as they are. The right letter is
            uneven in MMLU.

    Raises:
        DatasetError: A source cannot be read or is not in its format, or the arguments cannot be served.
    """
    _check_arguments(subject, split, sources, faulty)
    paths = {"mmlu": mmlu, "theoremqa": theoremqa, "gpqa": gpqa}
    items = [item for source in sources for item in _divide(_read(subject, source, paths[source]), seed)[split]]
    marks = {} if faulty == "keep" else college_data.faults(subject, redux)
    chosen = [
        _example(item, marks.get(item.twin, "unchecked") if faulty == "mark" else None, option_seed)
        for item in items
        if not (drop_pictures and item.has_picture) and not (faulty == "drop" and marks.get(item.twin, "ok") != "ok")
    ]
    random.Random(f"{seed}/{split}").shuffle(chosen)
    if size is not None and not 0 < size <= len(chosen):
        raise DatasetError(f"Size {size!r} of the split {split!r}, expected a number from 1 to {len(chosen)}.")
    return chosen[:size]


# The split


def _divide(items: Sequence[Item], seed: int) -> dict[str, list[Item]]:
    """Items of one source by split, whole groups in a seeded order that does not depend on the order of the source."""
    by_group: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: (item.twin, item.correct, item.answer)):
        by_group[item.group].append(item)
    groups = [by_group[name] for name in sorted(by_group)]
    random.Random(f"{seed}/split").shuffle(groups)
    num_training = len(items) * 2 // 3
    test, training = _fill(groups, len(items) - num_training)
    validation, train = _fill(training, round(num_training * _VALIDATION_SHARE))
    splits = {"train": train, "validation": validation, "test": test}
    return {split: [item for group in chosen for item in group] for split, chosen in splits.items()}


def _fill(groups: Sequence[list[Item]], size: int) -> tuple[list[list[Item]], list[list[Item]]]:
    """Whole groups with `size` items in all, and the other groups; fewer items if no group fits into the rest."""
    taken: list[list[Item]] = []
    left: list[list[Item]] = []
    room = size
    for group in groups:
        (taken if len(group) <= room else left).append(group)
        room -= len(group) if len(group) <= room else 0
    return taken, left


# Examples


def _read(subject: Subject, source: Source, path: str | Path | None) -> list[Item]:
    if source == "mmlu":
        return college_data.mmlu(subject, path)
    if source == "theoremqa":
        return college_data.theoremqa(path) if subject == "physics" else []
    if path is not None:
        return college_data.gpqa(subject, path)
    gpqa = _gpqa_of_hub(subject)
    if not isinstance(gpqa, DatasetError):
        return gpqa
    others = tuple(other for other in _SOURCES if other != "gpqa")
    warnings.warn(
        f"College {subject} goes on without GPQA: {gpqa} Pass `gpqa=` a CSV of it, or `sources={others}` to silence "
        "this.",
        stacklevel=3,
    )
    return []


@cache
def _gpqa_of_hub(subject: Subject) -> list[Item] | DatasetError:
    """Asked once per process: without a network, each answer takes half a minute, and all splits and seeds ask."""
    try:
        return college_data.gpqa(subject)
    except DatasetError as error:
        return error


def _example(item: Item, fault: str | None, option_seed: int | None) -> dspy.Example:
    options, answer = _add_letters(item, option_seed) if item.options else ("", item.answer)
    fields = {
        "question": item.question + options,
        "answer_form": _FORMS.get(item.answer_type, ""),
        "answer": answer,
        "dspy_key": college_data.question_hash(item.question),
        "dspy_source": item.source,
        "dspy_answer_type": item.answer_type,
        "dspy_picture": item.has_picture,
    }
    example = dspy.Example(**fields, **({} if fault is None else {"dspy_fault": fault}))
    return example.with_inputs("question", "answer_form")


def _add_letters(item: Item, option_seed: int | None) -> tuple[str, str]:
    """The options as lines, and the letter of the right one."""
    order = list(range(len(item.options)))
    if option_seed is not None or item.source == "gpqa":  # GPQA gives the right option first
        random.Random(f"{option_seed or 0}/{'/'.join(item.twin)}").shuffle(order)
    lines = [f"\n{letter}) {item.options[place]}" for letter, place in zip(college_data.LETTERS, order, strict=True)]
    return "".join(lines), college_data.LETTERS[order.index(item.correct)]


def _check_subject(subject: Any) -> None:
    if subject not in ("physics", "chemistry"):
        raise DatasetError(f"Subject {subject!r}, expected 'physics' or 'chemistry'.")


def _check_arguments(subject: Any, split: Any, sources: Sequence[str], faulty: Any) -> None:
    _check_subject(subject)
    if split not in ("train", "validation", "test"):
        raise DatasetError(f"Split {split!r}, expected 'train', 'validation' or 'test'.")
    if not sources or isinstance(sources, str) or set(sources) - set(_SOURCES):
        raise DatasetError(f"Sources {sources!r}, expected some of {_SOURCES}.")
    if faulty not in ("keep", "drop", "mark"):
        raise DatasetError(f"`faulty` is {faulty!r}, expected 'keep', 'drop' or 'mark'.")
