"""The demo's task: a Context Analyst finds the relevant sentence, and a Problem Solver reads the name in it.

Items come from reasoning-gym's `needle_haystack` with 4 to 6 statements, generated and not downloaded. The question
asks for a person ("Who adores trail running?"), and one statement contains the answer.

Unlike in the paper's PubMedQA program, the analyst sees the question: without it, it could only copy everything.

Splits never share a question, for any seeds and sizes; see `sirius_dspy.demo.generated`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import dspy
from dspy.signatures import make_signature

from sirius_dspy import RepairDemos
from sirius_dspy.demo import generated
from sirius_dspy.demo.exact_word import exact_word as metric
from sirius_dspy.demo.generated import Split
from sirius_dspy.demo.majority import majority_baseline

__all__ = [
    "NeedleHaystack",
    "build",
    "demonstrations",
    "examples",
    "majority_baseline",
    "metric",
    "repair_demonstrations",
]

_FORMAT = "Reply only with a name."
"""The generator's instruction for the reply. Only the solver gets it, because the analyst replies in another form."""


_FIND = make_signature(
    "context: str, question: str -> relevant: str", "Copy the sentence from the context that answers the question."
)
_ANSWER = make_signature("relevant: str, question: str -> answer: str", "Answer the question with one name.")


class _Story(NamedTuple):
    """A hand-written item."""

    context: str
    position: int
    """Position of the sentence with the answer."""

    @property
    def relevant(self) -> str:
        return self._sentence(self.position)

    @property
    def wrong(self) -> str:
        """The previous sentence, or the last one."""
        return self._sentence(self.position - 1)

    @property
    def name(self) -> str:
        return self.relevant.split()[0]

    @property
    def question(self) -> str:
        return f"Who {self.relevant.removeprefix(self.name).strip(' .')}?"

    def _sentence(self, position: int) -> str:
        return self.context.removesuffix(".").split(". ")[position] + "."


_STORIES = (
    _Story("Lena dislikes night trains. Bo loves wet socks. Ada admires stone bridges.", 1),
    _Story("Mira prefers rye toast. Otto fears tall ladders. Sue endures loud clocks.", 2),
    _Story("Yuki enjoys folding maps. Pam rejects cold soup. Ned likes odd hats.", 0),
    _Story("Ida is fond of toy boats. Kofi scorns thick fog. Lou values dry wood.", 1),
)


class NeedleHaystack(dspy.Module):
    """Context Analyst -> Problem Solver; the solver sees only `relevant` of the context."""

    def __init__(self) -> None:
        super().__init__()
        self.analyst = dspy.Predict(_FIND)
        self.solver = dspy.Predict(_ANSWER)

    def forward(self, context: str, question: str) -> dspy.Prediction:
        """Answer one question; the prediction has `answer`."""
        relevant = self.analyst(context=context, question=question).relevant
        return self.solver(relevant=relevant, question=question)

    async def aforward(self, context: str, question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        analysis = await self.analyst.acall(context=context, question=question)
        return await self.solver.acall(relevant=analysis.relevant, question=question)


def build() -> dspy.Module:
    """Build the untrained program, with predictors `analyst` and `solver` and without LMs."""
    return NeedleHaystack()


def examples(split: Split, size: int = 100, seed: int = 0) -> list[dspy.Example]:
    """Generate items with the inputs `context` and `question`, the label `answer`, and the question's hash `dspy_key`.

    DSPy reserves field names with this prefix: `dspy_key` is not a label, and no agent sees it.

    Equal arguments give equal items in every process, and a smaller size gives the first items of a larger one. No
    question occurs twice in a split or in two splits, for any seeds.

    Args:
        split: `train`, `validation` or `test`.
        size: Number of items.
        seed: Seed from 0; other seeds give other items of the same kind.

    Raises:
        DatasetError: The split, the size or the seed is invalid, or there are too few questions.
        MissingDependencyError: reasoning-gym is not installed.
    """
    settings = {"min_num_statements": 4, "max_num_statements": 6}
    return generated.examples("needle_haystack", settings, _example, split, size, seed)


def demonstrations() -> dict[str, list[dspy.Example]]:
    """Return four hand-written demonstrations for each predictor, about things that the generator does not know.

    They are for collecting and for the few-shot baseline; training prompts have no demonstrations.
    """
    demos: dict[str, list[dspy.Example]] = {"analyst": [], "solver": []}
    for story in _STORIES:
        sentence = dspy.Example(context=story.context, question=story.question, relevant=story.relevant)
        named = dspy.Example(relevant=story.relevant, question=story.question, answer=story.name)
        demos["analyst"].append(sentence.with_inputs("context", "question"))
        demos["solver"].append(named.with_inputs("relevant", "question"))
    return demos


def repair_demonstrations() -> RepairDemos:
    """Return repairs of the same stories; without them, a 135M model repairs nothing.

    A critic of this size cannot give hints, so it names the person to look for. The leak guard still checks the agents.
    """
    critique, regenerate, rephrase = [], [], []
    for story in _STORIES:
        task = f"context: {story.context}\nquestion: {story.question}"
        team = f"[analyst]\n{story.wrong}\n\n[solver]\n{story.wrong.split()[0]}"
        feedback = f"Copy the sentence about {story.name}."
        told = {"task": task, "team": team, "agent": "analyst", "agent_inputs": task, "agent_answer": story.wrong}
        critique.append(dspy.Example(**told, correct_answer=story.name, feedback=feedback))
        regenerate.append(
            dspy.Example(context=story.context, question=story.question, feedback=feedback, relevant=story.relevant)
        )
        rephrase.append(dspy.Example(task=task, text=story.relevant, rewritten=story.relevant))
    return RepairDemos(critique=critique, regenerate={"analyst": regenerate}, rephrase=rephrase)


def _example(item: dict[str, Any]) -> dspy.Example:
    asked = item["metadata"]["question"]
    context = item["question"].removesuffix(asked).strip()
    question = asked.removesuffix(_FORMAT).strip()
    key = generated.key_of(question)
    return dspy.Example(context=context, question=question, answer=item["answer"], dspy_key=key).with_inputs(
        "context", "question"
    )
