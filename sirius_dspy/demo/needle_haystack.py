"""The demo: a Context Analyst finds the sentence that matters, a Problem Solver reads the name in it.

Items come from reasoning-gym's `needle_haystack` with 4 to 6 statements, generated and not downloaded. The question
says who is asked for ("Who adores trail running?"), and one statement has the answer.

Unlike in the paper's PubMedQA program, the analyst sees the question: without it, all it could do is copy everything.

Splits never share a question, whatever their seeds and sizes: see `sirius_dspy.demo.generated`.
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
"""The generator's demand on the reply; here it is the solver's instruction, since the analyst replies otherwise."""


_FIND = make_signature(
    "context: str, question: str -> relevant: str", "Copy the sentence from the context that answers the question."
)
_ANSWER = make_signature("relevant: str, question: str -> answer: str", "Answer the question with one name.")


class _Story(NamedTuple):
    """An item written by hand."""

    context: str
    position: int
    """Of the sentence that answers."""

    @property
    def relevant(self) -> str:
        return self._sentence(self.position)

    @property
    def wrong(self) -> str:
        """The sentence before, or the last one."""
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
    """Context Analyst -> Problem Solver; `relevant` is the only thing that the solver knows of the context."""

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
    """The untrained program, with predictors `analyst` and `solver` and no LM set."""
    return NeedleHaystack()


def examples(split: Split, size: int = 100, seed: int = 0) -> list[dspy.Example]:
    """Items with the inputs `context` and `question`, the label `answer`, and `dspy_key`, the hash of the question.

    DSPy takes a field with such a name for its own: it is no label, and no agent is ever shown it.

    Equal arguments give equal items in every process, and a smaller size gives the first items of a larger one. No
    question occurs twice in a split, or in two splits, whatever their seeds.

    Args:
        split: `train`, `validation` or `test`.
        size: Number of items.
        seed: From 0; other seeds give other items of the same kind.

    Raises:
        DatasetError: The split, the size or the seed cannot be served.
        MissingDependencyError: reasoning-gym is not installed.
    """
    settings = {"min_num_statements": 4, "max_num_statements": 6}
    return generated.examples("needle_haystack", settings, _example, split, size, seed)


def demonstrations() -> dict[str, list[dspy.Example]]:
    """Four demonstrations for each predictor, written by hand about things that the generator does not know.

    They serve cold starts and the few-shot baseline; training prompts never have any.
    """
    demos: dict[str, list[dspy.Example]] = {"analyst": [], "solver": []}
    for story in _STORIES:
        sentence = dspy.Example(context=story.context, question=story.question, relevant=story.relevant)
        named = dspy.Example(relevant=story.relevant, question=story.question, answer=story.name)
        demos["analyst"].append(sentence.with_inputs("context", "question"))
        demos["solver"].append(named.with_inputs("relevant", "question"))
    return demos


def repair_demonstrations() -> RepairDemos:
    """Repairs of the same stories: without them, a 135M model repairs nothing.

    So small a critic cannot hint; it says outright whom to look for. The leak guard still reads what the agents write.
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
