"""Hints for several steps of one run: what each of them should write follows from the label, backwards."""

import dspy
import pytest

from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.hint import HintAugmenter
from sirius_dspy.repair.leak import split_sentences
from sirius_dspy.repair.solved import SolvedRuns
from sirius_dspy.repair.targets import find_link
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, chat_reply
from tests.team import exact_match

pytestmark = pytest.mark.usefixtures("chat_adapter")

SENTENCES = (
    *("Ann works for Bo.", "Cy lives in Rome.", "Eve works for Cy."),
    *("Bo lives in Lima.", "Di works for Ed.", "Ed lives in Oslo."),
)
EXAMPLE = dspy.Example(context=" ".join(SENTENCES), question="Where is the boss of Ann?", answer="Lima").with_inputs(
    "context", "question"
)


class Hops(dspy.Module):
    def __init__(self):
        super().__init__()
        self.finder = dspy.Predict("context, question -> fact")
        self.follower = dspy.Predict("context, fact -> next_fact")
        self.answerer = dspy.Predict("fact -> answer")

    def forward(self, context, question):
        fact = self.finder(context=context, question=question).fact
        return self.answerer(fact=self.follower(context=context, fact=fact).next_fact)


def repair(finds, follows, shares=(0.5,), frozen=(), solved=(), example=EXAMPLE, program=None):
    """Repair a run whose finder and follower are right only if their hint begins as given."""

    def play(prompt):
        hint = prompt.field("hint") or ""
        if prompt.asks_for("answer"):
            return chat_reply(answer=(prompt.field("fact") or "").strip(" .").split()[-1])
        if prompt.asks_for("next_fact"):
            is_right = follows in hint if follows else "Ann" in (prompt.field("fact") or "")
            return chat_reply(next_fact="Bo lives in Lima." if is_right else "Cy lives in Rome.")
        return chat_reply(fact="Ann works for Bo." if finds and finds in hint else "Eve works for Cy.")

    program = program or Hops()
    program.set_lm(ScriptedLM(play))
    rollouts = Rollouts(exact_match, run="r", iteration=1, lm_kwargs={"temperature": 1.0}, num_threads=1)
    failed = rollouts.run_one(program, Task(example))
    editable = frozenset({"finder", "follower", "answerer"} - set(frozen))
    context = RepairContext(program, rollouts, 1.0, editable, solved=SolvedRuns(lambda: solved))
    return failed, HintAugmenter(shares=shares).repair(failed, example, context)


def tried(outcome):
    return [(attempt.predictor, attempt.feedback, attempt.verdict) for attempt in outcome.repair.attempts]


def test_the_first_agent_is_pointed_to_the_sentence_that_leads_to_that_of_the_second():
    _, outcome = repair(finds="Ann works", follows="")
    assert tried(outcome) == [("finder", "It begins with 'Ann works'.", "repaired")]


def test_where_one_right_step_is_not_enough_the_next_one_is_helped_too_and_both_are_taught():
    failed, outcome = repair(finds="Ann works", follows="Bo lives")
    assert tried(outcome) == [
        ("finder", "It begins with 'Ann works'.", "failed"),
        ("follower", "It begins with 'Bo lives'.", "repaired"),
    ]
    run = outcome.trajectories[-1]
    assert (run.parent, run.edited, run.id) == (failed.id, 0, outcome.repair.attempts[-1].trajectory)
    assert [list(step.outputs.values()) for step in run.taught_steps] == [
        ["Ann works for Bo."],
        ["Bo lives in Lima."],
        ["Lima"],
    ]
    assert all("It begins" not in (step.prompt or "") for step in run.steps)


@pytest.mark.parametrize("frozen", [(), ("finder",)])
def test_a_step_that_reads_what_is_wrong_gets_no_hint(frozen):
    _, outcome = repair(finds="", follows="Bo lives", frozen=frozen)
    assert not outcome.repair.repaired
    assert "follower" not in {attempt.predictor for attempt in outcome.repair.attempts}


def solve(fact):
    """A solved run of another example, whose finder wrote this."""
    example = dspy.Example(context="Al works for Flo. Flo lives in Nice.", question="?", answer="Nice")
    texts = {"fact": fact, "next_fact": "Flo lives in Nice.", "answer": "Nice"}
    program = Hops()
    program.set_lm(ScriptedLM(lambda prompt: chat_reply(**{n: t for n, t in texts.items() if prompt.asks_for(n)})))
    run = Rollouts(exact_match, num_threads=1).run_one(program, Task(example.with_inputs("context", "question")))
    return run, example.with_inputs("context", "question")


@pytest.mark.parametrize(("fact", "is_copied"), [("Al works for Flo.", True), ("The boss is Flo.", False)])
def test_the_whole_text_takes_the_place_of_a_step_that_usually_copies(fact, is_copied):
    _, outcome = repair(finds="", follows="", shares=(1,), solved=[solve(fact)])
    assert tried(outcome) == ([("finder", None, "repaired")] if is_copied else [])
    if is_copied:
        assert outcome.trajectories[0].taught_steps[0].outputs == {"fact": "Ann works for Bo."}


def test_the_link_is_the_only_other_sentence_with_a_name_of_the_target():
    assert find_link(SENTENCES, "Bo lives in Lima.", ()) == "Ann works for Bo."
    assert find_link(SENTENCES, "Bo lives in Lima.", ["Ann works for Bo."]) == ""
    assert find_link(SENTENCES[:4], "Bo lives in Lima.", ()) == "Ann works for Bo."  # `lives` links nothing
    assert find_link(["Flat 7 is Ann's.", "The key of 7 is red."], "The key of 7 is red.", ()) == "Flat 7 is Ann's."


@pytest.mark.parametrize(
    "text",
    [
        "Ann works for Bo. Bo lives in Lima. Cy met Bo at noon. Di sings in town.",
        "Ann's boss is Bo. Bo lives in Lima. Cy knows Bo.",
        "Ann serves Bo Smith. Bo Smith's office is in Lima. Al Reed's office is near Rome. Bo Smith likes tea.",
    ],
)
def test_a_name_that_several_sentences_have_links_none_of_them_and_no_other_word_does(text):
    sentences = split_sentences({"context": text})
    assert find_link(sentences, sentences[1], ()) == ""


def test_where_names_tell_nothing_the_first_agent_gets_no_hint():
    context = EXAMPLE.context + " Cy met Bo at noon."
    _, outcome = repair(finds="", follows="Bo lives", example=EXAMPLE.copy(context=context))
    assert [name for name, _, _ in tried(outcome)] == ["follower"]


@pytest.mark.parametrize("wrap", [lambda fact: f"Fact: {fact}", lambda fact: [fact]], ids=["text", "list"])
def test_a_wrong_text_misleads_also_inside_another_one(wrap):
    class Wrapping(Hops):
        def forward(self, context, question):
            fact = self.finder(context=context, question=question).fact
            return self.answerer(fact=self.follower(context=context, fact=wrap(fact)).next_fact)

    _, outcome = repair(finds="", follows="Bo lives", program=Wrapping())
    assert "follower" not in {attempt.predictor for attempt in outcome.repair.attempts}
    _, outcome = repair(finds="Ann works", follows="Bo lives", program=Wrapping())
    assert [name for name, _, _ in tried(outcome)] == ["finder", "follower"]


def test_a_wrong_text_misleads_nobody_who_reads_it_in_the_example_alone():
    class Apart(Hops):
        def forward(self, context, question):
            self.finder(context=context, question=question)
            return self.answerer(fact=self.follower(context=context, fact=question).next_fact)

    _, outcome = repair(finds="", follows="Bo lives", program=Apart())
    assert ("follower", "It begins with 'Bo lives'.", "repaired") in tried(outcome)


class Ages(dspy.Module):
    """Finder -> Reader, which writes a value of some type."""

    def __init__(self, kind):
        super().__init__()
        self.finder = dspy.Predict("context -> fact")
        self.reader = dspy.Predict(f"fact -> value: {kind.__name__}")

    def forward(self, context):
        return self.reader(fact=self.finder(context=context).fact)


def values_match(example, prediction, trace=None):
    return example.value == prediction.value


@pytest.mark.parametrize(("kind", "gold", "wrong"), [(int, 12, "7"), (float, 4.0, "7.5"), (str, "red", "blue")])
def test_after_another_edit_a_label_keeps_its_type(kind, gold, wrong):
    def play(context, fact, value):
        program = Ages(kind)
        texts = {"fact": fact, "value": value}
        program.set_lm(ScriptedLM(lambda prompt: chat_reply(**{n: t for n, t in texts.items() if prompt.asks_for(n)})))
        example = dspy.Example(context=context, value=gold).with_inputs("context")
        return program, rollouts.run_one(program, Task(example)), example

    rollouts = Rollouts(values_match, num_threads=1)
    _, run, example = play("Al is 3. Bo is 4.", "Al is 3.", gold)
    solved = SolvedRuns(lambda: [(run, example)])
    program, failed, example = play(f"Ann has {gold}. Bo sleeps.", "Bo sleeps.", wrong)
    context = RepairContext(program, rollouts, 1.0, frozenset({"finder", "reader"}), solved=solved)
    outcome = HintAugmenter(shares=(1,)).repair(failed, example, context)
    assert [attempt.verdict for attempt in outcome.repair.attempts] == ["failed", "repaired"]
    assert [step.outputs for step in outcome.trajectories[-1].taught_steps] == [
        {"fact": f"Ann has {gold}."},
        {"value": gold},
    ]


class Thinkers(dspy.Module):
    """Finder -> Answerer, which both think before they write."""

    def __init__(self):
        super().__init__()
        self.finder = dspy.ChainOfThought("context, question -> fact")
        self.answerer = dspy.ChainOfThought("question, context, fact -> answer: int")

    def forward(self, context, question):
        fact = self.finder(context=context, question=question).fact
        return self.answerer(question=question, context=context, fact=fact)


@pytest.mark.parametrize(
    ("finds", "answers", "expected"),
    [
        ("Ann is", "", ["finder.predict: `fact` begins with 'Ann is'."]),
        ("nothing", "12", ["finder.predict: `fact` begins with 'A' and has 3 words."]),
        (
            "Ann is",
            "is '12'",
            [
                "finder.predict: `fact` begins with 'Ann is'.",
                "answerer.predict: `answer` begins with '1' and has 2 characters.",
                "answerer.predict: `answer` begins with '1'.",
                "answerer.predict: `answer` is '12'.",
            ],
        ),
    ],
)
def test_an_agent_that_thinks_first_is_told_what_to_write_and_thinks_again(finds, answers, expected):
    def play(prompt):
        hint = prompt.field("hint") or ""
        if prompt.asks_for("fact"):
            return chat_reply(reasoning="Who?", fact="Ann is 12." if finds in hint else "Bo is 7.")
        is_right = answers in hint if answers else "Ann" in (prompt.field("fact") or "")
        return chat_reply(reasoning="How old?", answer=12 if is_right else 7)

    program = Thinkers()
    program.set_lm(ScriptedLM(play))
    example = dspy.Example(context="Bo is 7. Ann is 12.", question="How old is Ann?", answer=12)
    example = example.with_inputs("context", "question")
    rollouts = Rollouts(exact_match, run="r", iteration=1, lm_kwargs={"temperature": 1.0}, num_threads=1)
    failed = rollouts.run_one(program, Task(example))
    context = RepairContext(program, rollouts, 1.0, frozenset({"finder.predict", "answerer.predict"}))
    outcome = HintAugmenter().repair(failed, example, context)
    hints = [f"{predictor}: {hint}" for predictor, hint, _ in tried(outcome)]
    assert [hint for hint in expected if hint not in hints] == []
    assert outcome.repair.repaired == (finds != "nothing" or answers == "12")
    assert all("begins" not in (step.prompt or "") for run in outcome.trajectories for step in run.steps)
