"""PubMedQA: a Context Analyst condenses an abstract, a Problem Solver answers the question by yes, no or maybe.

The 1000 labelled questions (`pqa_labeled`), with the data set's official halves of 500 for training and test. The
conclusion of each paper and the guesses of the annotators, which give the answer away, are never read into an example.

References:
    Jin et al., PubMedQA: A Dataset for Biomedical Research Question Answering (arXiv:1909.06146).
    SiriuS (arXiv:2502.04780), section 3: the two agents, where the analyst sees the context but not the question.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dspy
from dspy.signatures import make_signature

from metrics.yes_no_maybe import LABELS, parse
from metrics.yes_no_maybe import yes_no_maybe as metric
from sirius_dspy import Agent, AgentGraph, BalancedCurator
from sirius_dspy.demo.majority import majority_baseline
from sirius_dspy.errors import DatasetError, GraphError

__all__ = ["AnswerCurator", "PubMedQA", "PubMedQATeam", "build", "examples", "majority_baseline", "metric"]

Split = Literal["train", "validation", "test"]

_HUB_ID = "qiaojin/PubMedQA"
_GOLD_FILE = "test_ground_truth.json"
_TEST_PMIDS = Path(__file__).with_name("pubmedqa_test_pmids.txt")
_VALIDATION_SHARE = 0.2
"""Of the training half: 100 of 500 questions, which leaves a standard error of 5 points to choose iterations by."""


_CONDENSE = make_signature(
    "context: str -> summary: str",
    "Summarize the findings in the context that help to answer a research question about it.",
)
_CONDENSE_FOR_QUESTION = make_signature(
    "context: str, question: str -> summary: str",
    "Summarize the findings in the context that help to answer the question.",
)
_DECIDE = make_signature(
    "summary: str, question: str -> answer: str",
    "Answer the question from the summary with one word: yes, no or maybe.",
)


class PubMedQA(dspy.Module):
    """Context Analyst -> Problem Solver.

    Args:
        analyst_sees_question: The paper's analyst does not see it.
    """

    def __init__(self, analyst_sees_question: bool = False) -> None:
        super().__init__()
        self.analyst_sees_question = analyst_sees_question
        self.analyst = dspy.Predict(_CONDENSE_FOR_QUESTION if analyst_sees_question else _CONDENSE)
        self.solver = dspy.Predict(_DECIDE)

    def forward(self, context: str, question: str) -> dspy.Prediction:
        """Answer one question; the prediction has `answer`."""
        summary = self.analyst(**self._analyst_inputs(context, question)).summary
        return self.solver(summary=summary, question=question)

    async def aforward(self, context: str, question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        condensed = await self.analyst.acall(**self._analyst_inputs(context, question))
        return await self.solver.acall(summary=condensed.summary, question=question)

    def _analyst_inputs(self, context: str, question: str) -> dict[str, str]:
        return {"context": context, "question": question} if self.analyst_sees_question else {"context": context}


_ASPECTS: Mapping[str, str] = {
    "background": "why the study was made and what was known before",
    "methods": "who was studied, and how",
    "results": "what was found",
    "certainty": "how sure the findings are: numbers, sizes of groups, tests, and what was not found",
}
_SPECIALISTS: Mapping[int, Mapping[str, tuple[str, ...]]] = {
    1: {},
    2: {"analyst": tuple(_ASPECTS)},
    3: {"setting_analyst": ("background", "methods"), "findings_analyst": ("results", "certainty")},
    4: {
        "background_analyst": ("background",),
        "methods_analyst": ("methods",),
        "results_analyst": ("results", "certainty"),
    },
    5: {f"{aspect}_analyst": (aspect,) for aspect in _ASPECTS},
}
"""Number of agents to the analysts and what they look for; the last agent is always the solver. All numbers cover the
same aspects, so that what differs is the division of labour."""


class PubMedQATeam(AgentGraph):
    """Specialised analysts side by side -> Problem Solver, which sees the question and their notes alone.

    Args:
        num_agents: From 1 (a solver that sees context and question) to 5 (four analysts).
        analyst_sees_question: The paper's analyst does not see it.

    Raises:
        GraphError: No team of this size is defined.
    """

    def __init__(self, num_agents: int = 4, analyst_sees_question: bool = False) -> None:
        if num_agents not in _SPECIALISTS:
            raise GraphError(f"A PubMedQA team of {num_agents!r} agents, expected a number from 1 to 5.")
        analysts = _SPECIALISTS[num_agents]
        agents = {name: _specialist(name, aspects, analyst_sees_question) for name, aspects in analysts.items()}
        read = [f"{name}_notes" for name in analysts] or ["context"]
        decide = make_signature(
            ", ".join(f"{field}: str" for field in [*read, "question"]) + " -> answer: str",
            f"Answer the question from the {'notes' if analysts else 'context'} with one word: yes, no or maybe.",
        )
        super().__init__(
            "context, question -> answer", {**agents, "solver": Agent(dspy.Predict(decide), role="decides")}
        )


def _specialist(name: str, aspects: Sequence[str], sees_question: bool) -> Agent:
    wanted = "; ".join(_ASPECTS[aspect] for aspect in aspects)
    target = "the question" if sees_question else "a research question about it"
    signature = make_signature(
        f"context: str{', question: str' if sees_question else ''} -> notes: str",
        f"Write notes on the context that help to answer {target}. Look for: {wanted}.",
    )
    return Agent(dspy.Predict(signature), role=", ".join(aspects), writes={"notes": f"{name}_notes"})


@dataclass(frozen=True)
class AnswerCurator(BalancedCurator):
    """A `Curator` that balances the answers, since more than half of the questions are answered by yes.

    Otherwise, a small model learns to answer yes to all of them.
    """

    def value_of(self, text: str) -> str | None:
        """See `BalancedCurator.value_of`."""
        return parse(text)


def build(analyst_sees_question: bool = False, num_agents: int = 2) -> dspy.Module:
    """The untrained program, with no LM set.

    Args:
        analyst_sees_question: The paper's analyst does not see it.
        num_agents: 2 is the paper's program, with the predictors `analyst` and `solver`; 1, a single agent, and 3 to 5
            are `PubMedQATeam`.

    Raises:
        GraphError: No team of this size is defined.
    """
    return PubMedQA(analyst_sees_question) if num_agents == 2 else PubMedQATeam(num_agents, analyst_sees_question)


def examples(
    split: Split, size: int | None = None, seed: int = 0, path: str | Path | None = None
) -> list[dspy.Example]:
    """Questions with the inputs `context` and `question`, the label `answer`, and `dspy_key`, the PMID.

    The order is random by seed and stratified: the first n questions have the labels in the proportion of the whole
    split, up to rounding. The validation split is the first fifth of the official training half in that order; the
    rest of that half is the training split, so that both depend on the seed, while the test half never does.

    Args:
        split: `train`, `validation` or `test`.
        size: Number of questions; `None` takes all of the split.
        seed: Decides order and validation split.
        path: A local `ori_pqal.json` of the PubMedQA repository, with `test_ground_truth.json` beside it. Without it,
            the Hugging Face hub is asked for `qiaojin/PubMedQA`.

    Raises:
        DatasetError: A file is missing or not in the source's format, or the split or the size cannot be served.
    """
    if split not in ("train", "validation", "test"):
        raise DatasetError(f"Split {split!r}, expected 'train', 'validation' or 'test'.")
    test, training = _halves(path)
    pool = _stratify(test if split == "test" else training, seed)
    num_validation = round(len(training) * _VALIDATION_SHARE)
    chosen = {"test": pool, "validation": pool[:num_validation], "train": pool[num_validation:]}[split]
    if size is not None and not 0 < size <= len(chosen):
        raise DatasetError(f"Size {size!r} of the split {split!r}, expected a number from 1 to {len(chosen)}.")
    return chosen[:size]


def _halves(path: str | Path | None) -> tuple[list[dspy.Example], list[dspy.Example]]:
    """The test half and the training half, each in the order of the PMIDs, whatever the order of the source."""
    if path is None:
        examples, test_pmids = _from_hub(), set(_TEST_PMIDS.read_text(encoding="utf-8").split())
    else:
        examples, test_pmids = _from_file(Path(path)), _test_pmids(Path(path).with_name(_GOLD_FILE))
    missing = test_pmids - {example.dspy_key for example in examples}
    if missing:
        raise DatasetError(
            f"{len(missing)} test questions are missing, among them PMID {min(missing)!r}; expected all "
            f"{len(test_pmids)}. Take both files from the same version of github.com/pubmedqa/pubmedqa."
        )
    ordered = sorted(examples, key=lambda example: int(example.dspy_key))
    halves: dict[bool, list[dspy.Example]] = {True: [], False: []}
    for example in ordered:
        halves[example.dspy_key in test_pmids].append(example)
    return halves[True], halves[False]


def _from_file(path: Path) -> list[dspy.Example]:
    return [_read_record(path, pmid, record) for pmid, record in _read_json(path).items()]


def _read_record(path: Path, pmid: str, record: Any) -> dspy.Example:
    try:
        return _example(pmid, record["QUESTION"], record["CONTEXTS"], record["final_decision"])
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f"Record {pmid!r} of {str(path)!r} is not in PubMedQA's format ({error!r}); expected QUESTION, CONTEXTS, "
            "and final_decision. Take `data/ori_pqal.json` from github.com/pubmedqa/pubmedqa."
        ) from error


def _test_pmids(path: Path) -> set[str]:
    return set(_read_json(path))


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(
            f"{str(path)!r} cannot be read ({error.strerror}). Get `ori_pqal.json` and `{_GOLD_FILE}` from "
            "github.com/pubmedqa/pubmedqa, folder `data`, into one folder, or leave `path` out to use the hub."
        ) from error
    except ValueError as error:
        raise DatasetError(f"{str(path)!r} is not JSON: {error}. Download the file again.") from error
    if not isinstance(records, Mapping) or not records:
        raise DatasetError(f"{str(path)!r} holds {type(records).__name__}, expected a JSON object by PMID.")
    return records


def _from_hub() -> list[dspy.Example]:
    import datasets

    try:
        rows = datasets.load_dataset(_HUB_ID, "pqa_labeled", split="train")
    except Exception as error:
        raise DatasetError(
            f"The hub data set {_HUB_ID!r} could not be loaded: {error} Check the network, or pass `path=` a local "
            "`ori_pqal.json`."
        ) from error
    return _from_rows(rows.select_columns(["pubid", "question", "context", "final_decision"]))


def _from_rows(rows: Iterable[Mapping[str, Any]]) -> list[dspy.Example]:
    return [
        _example(str(row["pubid"]), row["question"], row["context"]["contexts"], row["final_decision"]) for row in rows
    ]


def _example(pmid: str, question: str, paragraphs: Sequence[str], answer: str) -> dspy.Example:
    if answer not in LABELS:
        raise DatasetError(f"PMID {pmid!r} has the label {answer!r}, expected one of {LABELS}. Correct the record.")
    fields = {"context": "\n".join(paragraphs), "question": question, "answer": answer, "dspy_key": pmid}
    return dspy.Example(**fields).with_inputs("context", "question")


def _stratify(pool: Sequence[dspy.Example], seed: int) -> list[dspy.Example]:
    """Shuffle so that every prefix has the labels in about the same proportion: spread each label evenly over 0..1."""
    by_label: dict[str, list[dspy.Example]] = defaultdict(list)
    for example in pool:
        by_label[example.answer].append(example)
    placed = []
    for label, members in sorted(by_label.items()):
        random.Random(f"{seed}/{label}").shuffle(members)
        placed += [((rank + 0.5) / len(members), label, example) for rank, example in enumerate(members)]
    return [example for *_, example in sorted(placed, key=lambda item: item[:2])]
