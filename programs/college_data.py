"""Where the questions of College Physics and Chemistry come from: MMLU, TheoremQA, GPQA, and MMLU-Redux's marks.

Each reader takes a local file in the source's own format, or asks the Hugging Face hub. Nothing is stored.

References:
    Hendrycks et al., Measuring Massive Multitask Language Understanding (arXiv:2009.03300).
    Chen et al., TheoremQA (arXiv:2305.12524).
    Rein et al., GPQA (arXiv:2311.12022).
    Gema et al., Are We Done with MMLU? (arXiv:2406.04127).
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dspy

from metrics.theoremqa import gold_of
from sirius_dspy.errors import DatasetError

Subject = Literal["physics", "chemistry"]
Source = Literal["mmlu", "theoremqa", "gpqa"]

LETTERS = "ABCD"
_PHYSICS_OF_THEOREMQA = Path(__file__).with_name("theoremqa_physics.txt")
_MMLU_HEADER = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
_OK = "ok"


@dataclass(frozen=True)
class Item:
    """One question."""

    source: Source
    question: str
    answer_type: str
    """`choice`, or a type of TheoremQA."""
    answer: str = ""
    """The gold value as JSON text, or an option as `(a)`; empty for a choice."""
    options: tuple[str, ...] = ()
    """Four texts for a choice, else none."""
    correct: int = 0
    """Index of the right option."""
    has_picture: bool = False
    """Whether the question cannot be answered from its text."""

    @property
    def group(self) -> str:
        """Equal for questions that must stay in one split, since they differ in punctuation or options at most."""
        return group_of(self.question)

    @property
    def twin(self) -> tuple[str, ...]:
        """Equal for the same question with the same options in the same order, and the same gold answer."""
        return twin_of(self.question, self.options, self.correct)


def group_of(question: str) -> str:
    """The letters and digits of a question.

    This also joins a few questions that differ in signs only (`a << b`, `a >> b`): to group them is harmless, while
    splitting real twins would leak test items into training.
    """
    return re.sub(r"\W+", "", question.lower())


def twin_of(question: str, options: Iterable[str], correct: int) -> tuple[str, ...]:
    """What identifies a question in MMLU and in MMLU-Redux, whatever its spacing and punctuation.

    The gold answer belongs to it: two questions on rate constants differ in `<<` and `>>` alone.
    """
    return (group_of(question), *map(group_of, options), str(correct))


# MMLU


def mmlu(subject: Subject, path: str | Path | None = None) -> list[Item]:
    """The test questions of `college_physics` or `college_chemistry`.

    Args:
        subject: `physics` or `chemistry`.
        path: A CSV with or without the header `question,choice0,...,answer`, where the answer is 0 to 3 or A to D.
            Without it, the hub is asked for `cais/mmlu`.

    Raises:
        DatasetError: The source cannot be read, or is not in this format.
    """
    if path is None:
        rows = from_hub("cais/mmlu", f"college_{subject}", "test")
        return read_rows("cais/mmlu", rows, _hub_mmlu_item, "question, choices, answer")
    lines = [cells for cells in csv.reader(_stream(path)) if cells]
    lines = lines[1:] if lines and lines[0] == _MMLU_HEADER else lines
    return read_rows(path, lines, _mmlu_item, f"six columns: {','.join(_MMLU_HEADER)}")


def _hub_mmlu_item(row: Mapping[str, Any]) -> Item:
    return _choice("mmlu", row["question"], row["choices"], str(row["answer"]))


def _mmlu_item(cells: Sequence[str]) -> Item:
    question, *options, answer = cells
    return _choice("mmlu", question, options, answer)


def _choice(source: Source, question: str, options: Sequence[str], answer: str) -> Item:
    correct = LETTERS.find(answer) if answer in [*LETTERS] else int(answer)
    if len(options) != len(LETTERS) or not 0 <= correct < len(LETTERS) or not question.strip():
        raise ValueError(f"{len(options)} options, answer {answer!r}")
    return Item(source, question.strip(), "choice", options=tuple(item.strip() for item in options), correct=correct)


# MMLU-Redux


def faults(subject: Subject, path: str | Path | None = None) -> dict[tuple[str, ...], str]:
    """What MMLU-Redux says of each MMLU question, by `Item.twin`: `ok`, `wrong_groundtruth`, `no_correct_answer`, ...

    Args:
        subject: `physics` or `chemistry`.
        path: A CSV with the columns `question`, `choices` (a Python list as text), `answer` and `error_type`. Without
            it, the hub is asked for `edinburgh-dawg/mmlu-redux`.

    Raises:
        DatasetError: The source cannot be read, or is not in this format.
    """
    name = "edinburgh-dawg/mmlu-redux"
    rows = from_hub(name, f"college_{subject}", "test") if path is None else _dicts(path)
    return dict(read_rows(path or name, rows, _mark, "the columns question, choices, answer, error_type"))


def _mark(row: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    options = row["choices"] if isinstance(row["choices"], list) else ast.literal_eval(row["choices"])
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"choices {row['choices']!r}")
    twin = twin_of(row["question"], options, int(row["answer"]))
    return twin, str(row["error_type"]).strip().lower().replace(" ", "_") or _OK


# TheoremQA


def theoremqa(path: str | Path | None = None) -> list[Item]:
    """The physics questions of TheoremQA.

    Args:
        path: The JSON of the source, a list of records. Without it, the hub is asked for `TIGER-Lab/TheoremQA`, which
            does not say which questions are physics: these, and those with a picture, are known by a list of hashes.

    Raises:
        DatasetError: The source cannot be read, or is not in this format.
    """
    if path is None:
        rows: Iterable[Any] = from_hub(
            "TIGER-Lab/TheoremQA", None, "test", columns=["Question", "Answer", "Answer_type"]
        )
    else:
        rows = _json_list(path)
    physics = _physics_hashes()
    expected = "Question, Answer, Answer_type"
    return read_rows(path or "TIGER-Lab/TheoremQA", rows, lambda row: _theoremqa_item(row, physics), expected)


def question_hash(question: str) -> str:
    """The name of a question in the list of TheoremQA's physics questions."""
    return hashlib.sha256(group_of(question).encode()).hexdigest()[:16]


def _physics_hashes() -> dict[str, bool]:
    """Hash of each physics question to whether it has a picture."""
    lines = _PHYSICS_OF_THEOREMQA.read_text(encoding="utf-8").splitlines()
    return {line.split()[0]: line.endswith("picture") for line in lines if line and not line.startswith("#")}


def _theoremqa_item(row: Mapping[str, Any], physics: Mapping[str, bool]) -> Item | None:
    question, kind = row["Question"], row["Answer_type"]
    name = question_hash(question)
    is_physics = row["field"] == "Physics" if "field" in row else name in physics
    if not is_physics:
        return None
    has_picture = row["Picture"] is not None if "Picture" in row else physics[name]
    answer = _json_value(row["Answer"])
    gold_of(dspy.Example(answer=answer, dspy_answer_type=kind))  # a missing gold answer is found before the first run
    return Item("theoremqa", question.strip(), kind, answer, has_picture=has_picture)


def _json_value(answer: Any) -> str:
    """The file has JSON values, the hub has them as text; `(a)` and `True` are the exceptions."""
    if not isinstance(answer, str):
        return json.dumps(answer)
    return answer.lower() if answer in ("True", "False") else answer


# GPQA


def gpqa(subject: Subject, path: str | Path | None = None) -> list[Item]:
    """The questions of GPQA's diamond subset in one domain; the right option comes first and has to be moved.

    Args:
        subject: `physics` or `chemistry`.
        path: A CSV of the source, e.g. `gpqa_diamond.csv`. Without it, the hub is asked for `Idavidrein/gpqa`, which
            needs an accepted licence and a token.

    Raises:
        DatasetError: The source cannot be read, or is not in this format.
    """
    rows = from_hub("Idavidrein/gpqa", "gpqa_diamond", "train") if path is None else _dicts(path)
    chosen = (row for row in rows if str(row.get("High-level domain", "")).strip().lower() in (subject, ""))
    columns = "Question, Correct Answer, Incorrect Answer 1 to 3, High-level domain"
    return read_rows(path or "Idavidrein/gpqa", chosen, _gpqa_item, columns)


def _gpqa_item(row: Mapping[str, Any]) -> Item:
    if not row["High-level domain"]:
        raise ValueError("no High-level domain")
    options = [row["Correct Answer"], *(row[f"Incorrect Answer {number}"] for number in (1, 2, 3))]
    return _choice("gpqa", row["Question"], options, "0")


# Reading files and the hub


def read_rows(place: str | Path, rows: Iterable[Any], read: Callable[[Any], Any], columns: str) -> list[Any]:
    """Read every row; those that `read` gives `None` for are left out.

    Raises:
        DatasetError: There is no row, or one is not in the source's format; the message has its number.
    """
    items = []
    for number, row in enumerate(rows, start=1):
        try:
            item = read(row)
        except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as error:
            raise DatasetError(
                f"Row {number} of {str(place)!r} cannot be read ({error!r}); expected {columns}. Pass the file as its "
                "source publishes it."
            ) from error
        if item is not None:
            items.append(item)
    if not items:
        raise DatasetError(f"{str(place)!r} has no rows of this subject; expected {columns}. Pass another file.")
    return items


def from_hub(name: str, config: str | None, split: str, columns: list[str] | None = None) -> Iterable[dict[str, Any]]:
    """Rows of a data set of the Hugging Face hub.

    Raises:
        DatasetError: It could not be loaded.
    """
    import datasets

    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        raise DatasetError(
            f"The hub data set {name!r} could not be loaded: {error} Check the network (and, for a gated set, your "
            "token), or pass the path of a local file."
        ) from error
    records: Iterable[dict[str, Any]] = rows if columns is None else rows.select_columns(columns)
    return records


def _stream(path: str | Path) -> io.StringIO:
    return io.StringIO(_text(path), newline="")


def _dicts(path: str | Path) -> list[dict[str, Any]]:
    return list(csv.DictReader(_stream(path)))


def _json_list(path: str | Path) -> list[Any]:
    try:
        rows = json.loads(_text(path))
    except ValueError as error:
        raise DatasetError(f"{str(path)!r} is not JSON: {error}. Download the file again.") from error
    if not isinstance(rows, list):
        raise DatasetError(f"{str(path)!r} holds {type(rows).__name__}, expected a JSON list of TheoremQA's records.")
    return rows


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error}. Correct the path, or leave it out.") from error
