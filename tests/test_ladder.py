"""The ladder of help: a fresh sample, a hint, the label; the least that suffices, and nothing of it in a row."""

from dataclasses import replace
from typing import Any

import dspy
import pytest

from sirius_dspy import CriticAugmenter
from sirius_dspy.errors import SettingsError
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.hint import HintAugmenter, write_hint
from sirius_dspy.repair.label import LabelAugmenter
from sirius_dspy.repair.ladder import RELIANT, LadderAugmenter
from sirius_dspy.repair.leak import LeakGuard
from sirius_dspy.repair.resample import ResampleAugmenter
from sirius_dspy.repair.solved import SolvedRuns
from sirius_dspy.repair.suitable import SuitableAugmenter
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import AugmenterContract, ScriptedLM, chat_reply
from sirius_dspy.trajectory import Attempt, Repair
from tests.team import Team, exact_match, questions

pytestmark = pytest.mark.usefixtures("chat_adapter")

EXAMPLE = dspy.Example(question="Ann likes tea. Omar likes milk. Who likes milk?", answer="Omar").with_inputs(
    "question"
)


class TestContracts(AugmenterContract):
    @pytest.fixture(
        params=[ResampleAugmenter, HintAugmenter, LabelAugmenter, LadderAugmenter, SuitableAugmenter],
        ids=lambda augmenter: augmenter.__name__,
    )
    def augmenter(self, request):
        return request.param()


class ScoringLM(ScriptedLM):
    """Says how likely a reply is: certain with a hint or a demonstration, else two nats off per token."""

    def score(self, messages, reply):
        text = "\n".join(message["content"] for message in messages)
        return [0.0 if "It begins" in text or len(messages) > 2 else -2.0] * len(reply.split())


def fail(play, *, example=EXAMPLE, lm=ScriptedLM, solved=(), last_rungs=None, program=None, metric=exact_match):
    """A failed run, and what a repair of it needs."""
    program = program or Team()
    program.set_lm(lm(play))
    rollouts = Rollouts(metric, run="r", iteration=2, lm_kwargs={"temperature": 1.0}, num_threads=1)
    failed = rollouts.run_one(program, Task(example))
    assert not failed.succeeded(1.0)
    editable = frozenset(name for name, _ in program.named_predictors())
    context = RepairContext(
        program, rollouts, 1.0, editable, solved=SolvedRuns(lambda: solved), last_rungs=last_rungs or {}
    )
    return failed, context


def solve(example, facts):
    """A successful run."""
    program = Team()
    program.set_lm(ScriptedLM(lambda prompt: chat_reply(facts=facts) if prompt.asks_for("facts") else right(example)))
    return Rollouts(exact_match, num_threads=1).run_one(program, Task(example)), example


def right(example=EXAMPLE):
    return chat_reply(answer=example.answer)


def play(facts="Nothing.", answer="Ann"):
    return lambda prompt: chat_reply(facts=facts) if prompt.asks_for("facts") else chat_reply(answer=answer)


def verdicts(outcome):
    return [(attempt.predictor, attempt.verdict) for attempt in outcome.repair.attempts]


# A fresh sample


def test_the_nearest_solved_runs_are_shown_the_nearest_last():
    near = dspy.Example(question="Eve likes milk. Who likes milk?", answer="Eve").with_inputs("question")
    far = dspy.Example(question="How tall is the tower?", answer="9").with_inputs("question")
    prompts = []

    def play_again(prompt):
        prompts.append(prompt)
        shown = "Eve likes milk." in prompt.text
        return (
            chat_reply(facts="Omar likes milk.") if prompt.asks_for("facts") else right() if shown else play()(prompt)
        )

    solved = [solve(near, "Eve likes milk."), solve(far, "It is 9 high."), solve(EXAMPLE, "its own run")]
    failed, context = fail(play_again, solved=solved)
    outcome = ResampleAugmenter(samples=1, num_demos=2).repair(failed, EXAMPLE, context)
    assert outcome.repair.repaired
    text = prompts[-1].text
    assert text.index("It is 9 high.") < text.index("Eve likes milk.")
    assert "its own run" not in text
    run = outcome.trajectories[0]
    assert all(step.num_demos == 2 for step in run.steps)
    assert all("It is 9 high." not in (step.prompt or "") for step in run.steps)


def test_a_fresh_sample_that_succeeds_is_the_last():
    asked = []

    def play_again(prompt):
        asked.append(prompt.field("question"))
        return play()(prompt) if prompt.asks_for("facts") or len(asked) < 5 else right()

    failed, context = fail(play_again)
    outcome = ResampleAugmenter(samples=5).repair(failed, EXAMPLE, context)
    assert [attempt.verdict for attempt in outcome.repair.attempts] == ["failed", "repaired"]
    assert len(outcome.trajectories) == 2


# Hints


def test_hints_fade():
    assert write_hint("Omar likes milk.", 0) == "It begins with 'O' and has 3 words."
    assert write_hint("Omar", 0) == "It begins with 'O' and has 4 letters."
    assert write_hint("Omar likes milk.", 0.5) == "It begins with 'Omar likes'."
    assert write_hint("Omar", 0.5) == "It begins with 'Om'."
    assert write_hint("Omar likes milk.", 0.99) == "It begins with 'Omar likes'."
    assert write_hint("O", 0.9) == "It begins with 'O'."


def test_the_least_hint_that_suffices_is_used_and_no_row_has_it():
    def play_again(prompt):
        if prompt.asks_for("facts"):
            return chat_reply(facts="Omar likes milk." if "'Omar likes'" in prompt.text else "Nothing.")
        return right() if "Omar" in (prompt.field("facts") or "") else chat_reply(answer="Ann")

    failed, context = fail(play_again)
    outcome = HintAugmenter().repair(failed, EXAMPLE, context)
    assert verdicts(outcome) == [("analyst", "unchanged"), ("analyst", "repaired")]
    assert [attempt.feedback for attempt in outcome.repair.attempts] == [
        "It begins with 'O' and has 3 words.",
        "It begins with 'Omar likes'.",
    ]
    for step in outcome.trajectories[0].taught_steps:
        assert "It begins" not in (step.prompt or "")


def test_a_step_that_does_not_answer_must_not_carry_the_label_ahead():
    example = dspy.Example(question="What is 6 times 7?", answer="42").with_inputs("question")

    def play_again(prompt):
        if prompt.asks_for("facts"):
            return chat_reply(facts="It is 42." if prompt.field("hint") else "Multiply.")
        return right(example) if "42" in (prompt.field("facts") or "") else chat_reply(answer="13")

    failed, context = fail(play_again, example=example)
    outcome = HintAugmenter(shares=[0.5]).repair(failed, example, context)
    assert verdicts(outcome) == [("solver", "unchanged")]  # nothing in the analyst's inputs can be pointed at


@pytest.mark.parametrize(
    "reasoning",
    [
        "It begins with 'O' and has 4 letters.",
        "The name has 4 letters, so it is Omar.",
        "It starts with “O”.",
        "It begins with the letter O.",
        "The hint says Omar.",
    ],
)
@pytest.mark.parametrize("guard", [None, LeakGuard(answering=["solver.predict"])])
def test_an_agent_that_repeats_its_hint_while_it_thinks_is_refused(reasoning, guard):
    class Thinking(dspy.Module):
        def __init__(self):
            super().__init__()
            self.solver = dspy.ChainOfThought("question -> answer")

        def forward(self, question):
            return self.solver(question=question)

    def play_again(prompt):
        is_helped = bool(prompt.field("hint"))
        return chat_reply(reasoning=reasoning if is_helped else "A guess.", answer="Omar" if is_helped else "Ann")

    failed, context = fail(play_again, program=Thinking())
    outcome = HintAugmenter(shares=[0], guard=guard).repair(failed, EXAMPLE, context)
    assert (verdicts(outcome), outcome.trajectories) == ([("solver.predict", "leaked")], ())


# The label


def test_the_label_takes_the_place_of_an_answer_that_can_be_known():
    failed, context = fail(play(facts="Omar likes milk."))
    outcome = LabelAugmenter().repair(failed, EXAMPLE, context)
    assert verdicts(outcome) == [("solver", "repaired")]
    run = outcome.trajectories[0]
    assert run.taught_steps[0].outputs == {"answer": "Omar"}
    assert run.taught_steps[0].prompt == failed.steps[1].prompt
    assert run.usage.calls == 0


class Blind(dspy.Module):
    """The solver reads nothing but what the analyst wrote."""

    def __init__(self):
        super().__init__()
        self.analyst = dspy.Predict("question -> facts")
        self.solver = dspy.Predict("facts -> answer")

    def forward(self, question):
        return self.solver(facts=self.analyst(question=question).facts)


def test_an_agent_that_cannot_know_the_answer_does_not_get_the_label():
    failed, context = fail(play(facts="Ann likes tea."), program=Blind())
    outcome = LabelAugmenter().repair(failed, EXAMPLE, context)
    assert ("solver", "repaired") not in verdicts(outcome)


OTHERS = [dspy.Example(question=f"{name} likes milk. Who?", answer=name).with_inputs("question") for name in "XYZ"]


@pytest.mark.parametrize(("facts", "is_repaired"), [("{}.", True), ("{} likes milk.", False), (None, False)])
def test_a_step_that_does_not_answer_gets_the_label_only_where_solved_runs_have_it(facts, is_repaired):
    def copy(prompt):
        return chat_reply(facts="Ann") if prompt.asks_for("facts") else chat_reply(answer=prompt.field("facts"))

    solved = [solve(example, facts.format(example.answer)) for example in OTHERS if facts]
    failed, context = fail(copy, program=Blind(), solved=solved)
    outcome = LabelAugmenter().repair(failed, EXAMPLE, context)
    assert verdicts(outcome) == ([("analyst", "repaired")] if is_repaired else [])


def test_an_earlier_step_of_a_loop_does_not_get_the_label_of_the_last():
    class Loop(dspy.Module):
        def __init__(self):
            super().__init__()
            self.tracker = dspy.Predict("holder, event -> new_holder")
            self.reporter = dspy.Predict("holder -> answer")

        def forward(self, start, events):
            holder = start
            for event in events:
                holder = self.tracker(holder=holder, event=event).new_holder
            return self.reporter(holder=holder)

    def story(*events, answer):
        return dspy.Example(start="Ann", events=list(events), answer=answer).with_inputs("start", "events")

    def track(prompt):  # always the name that an event ends with, except in the story that fails
        if prompt.asks_for("answer"):
            return chat_reply(answer=prompt.field("holder"))
        return chat_reply(new_holder="Ann" if "Eve" in prompt.text else prompt.field("event").split()[-1])

    stories = [story("to Bo", "to Cy", answer="Cy"), story("to Cy", "to Bo", "to Ann", answer="Ann")]
    solved = []
    for example in stories:
        program = Loop()
        program.set_lm(ScriptedLM(track))
        solved.append((Rollouts(exact_match, num_threads=1).run_one(program, Task(example)), example))
    example = story("Eve to Bo", "Eve to Cy", answer="Cy")
    failed, context = fail(track, example=example, program=Loop(), solved=solved)
    assert context.solved.label_share("tracker", 0) == 1.0
    assert context.solved.label_share("tracker", 1) == 0.0
    assert context.solved.label_share("tracker", 2) == 0.0
    assert context.solved.label_share("tracker", 3) is None
    outcome = LabelAugmenter().repair(failed, example, context)
    assert [(attempt.position, attempt.verdict) for attempt in outcome.repair.attempts] == [(1, "repaired")]


def test_a_step_that_broke_off_a_loop_does_not_count_as_the_last():
    def silent(prompt):
        return "no header" if prompt.asks_for("facts") else right()

    failed, context = fail(silent, program=Blind(), solved=[solve(example, example.answer) for example in OTHERS])
    assert failed.failure is not None
    assert context.solved.label_share("analyst", 0) == 1.0
    assert LabelAugmenter().repair(failed, EXAMPLE, context).repair.attempts == ()


class Relay(dspy.Module):
    """What the solver reads may happen to equal an input of the program."""

    def __init__(self):
        super().__init__()
        self.follower = dspy.Predict("holder, question -> new_holder")
        self.solver = dspy.Predict("holder -> answer")

    def forward(self, start, question):
        return self.solver(holder=self.follower(holder=start, question=question).new_holder)


def test_a_text_that_equals_an_input_by_chance_is_still_that_of_another_agent():
    example = dspy.Example(start="Ann", question="Who is next?", answer="Omar").with_inputs("start", "question")
    failed, context = fail(
        lambda prompt: chat_reply(new_holder="Ann") if prompt.asks_for("new_holder") else chat_reply(answer="Ann"),
        example=example,
        program=Relay(),
    )
    assert ("solver", "repaired") not in verdicts(LabelAugmenter().repair(failed, example, context))


class Reader(ScriptedLM):
    """Finds the label likelier if it reads of milk, and any other answer impossible if it reads a name."""

    def score(self, messages, reply):
        text = messages[-1]["content"]
        if "Ann" in text:
            return [0.0 if "Ann" in reply else -6.0]
        return [-1.0 if "milk" in text else -5.0]


@pytest.mark.parametrize(
    ("facts", "is_repaired"),
    [("He likes milk.", True), ("He likes tea.", False), ("Ann likes milk.", False)],
)
def test_a_text_must_make_the_label_likelier_and_leave_it_plausible(facts, is_repaired):
    failed, context = fail(play(facts=facts), program=Blind(), lm=Reader)
    outcome = LabelAugmenter().repair(failed, EXAMPLE, context)
    assert (("solver", "repaired") in verdicts(outcome)) == is_repaired
    trusting = LabelAugmenter(must_know=False).repair(failed, EXAMPLE, context)
    assert verdicts(trusting) == [("solver", "repaired")]


def test_without_labels_there_is_no_help_but_a_fresh_sample():
    example = dspy.Example(question="Say hello.").with_inputs("question")

    def polite(example, prediction, trace=None):
        return "please" in prediction.answer

    failed, context = fail(play(), example=example, metric=polite)
    for augmenter in (HintAugmenter(), LabelAugmenter()):
        assert augmenter.repair(failed, example, context).repair.attempts == ()
    assert len(ResampleAugmenter(samples=2).repair(failed, example, context).repair.attempts) == 2


def test_a_label_of_another_kind_than_the_output_is_no_help():
    class Scale(dspy.Module):
        def __init__(self):
            super().__init__()
            self.solver = dspy.Predict("question -> weight: int")

        def forward(self, question):
            return self.solver(question=question)

    example = dspy.Example(question="How heavy?", verdict="light").with_inputs("question")
    failed, context = fail(
        lambda prompt: chat_reply(weight=5), example=example, program=Scale(), metric=lambda e, p, trace=None: False
    )
    assert LabelAugmenter().repair(failed, example, context).repair.attempts == ()


# The ladder


def test_rungs_are_climbed_until_one_repairs():
    failed, context = fail(play(facts="Omar likes milk."))
    outcome = LadderAugmenter().repair(failed, EXAMPLE, context)
    assert [attempt.rung for attempt in outcome.repair.attempts] == ["resample"] * 2 + ["hint"] * 2 + ["label"]
    assert outcome.repair.repaired


def test_an_example_begins_one_rung_below_what_worked():
    failed, context = fail(play(facts="Omar likes milk."), last_rungs={})
    context = replace(context, last_rungs={failed.example_key: "label"})
    outcome = LadderAugmenter().repair(failed, EXAMPLE, context)
    assert [attempt.rung for attempt in outcome.repair.attempts] == ["hint"] * 2 + ["label"]


def test_a_rung_of_another_ladder_is_ignored():
    failed, context = fail(play(facts="Omar likes milk."))
    context = replace(context, last_rungs={failed.example_key: "critic"})
    outcome = LadderAugmenter([LabelAugmenter()]).repair(failed, EXAMPLE, context)
    assert [attempt.rung for attempt in outcome.repair.attempts] == ["label"]


def test_a_critic_may_be_the_last_rung():
    failed, context = fail(lambda prompt: chat_reply(feedback="no") if prompt.asks_for("feedback") else play()(prompt))
    outcome = LadderAugmenter([HintAugmenter(), CriticAugmenter(rephrase=False)]).repair(failed, EXAMPLE, context)
    assert {attempt.rung for attempt in outcome.repair.attempts} == {"hint", "critic"}


@pytest.mark.parametrize(
    ("augmenter", "message"),
    [
        (LadderAugmenter([]), "`rungs` of LadderAugmenter"),
        (LadderAugmenter(["label"]), "`rungs` of LadderAugmenter"),
        (LadderAugmenter([LabelAugmenter(), LabelAugmenter()]), "two of one kind"),
        (LadderAugmenter(drop_reliant=1.0), "`drop_reliant` of LadderAugmenter"),
        (LadderAugmenter([ResampleAugmenter(samples=0)]), "`samples` of ResampleAugmenter"),
        (HintAugmenter(shares=[1.1]), "`shares` of HintAugmenter"),
        (LabelAugmenter(guard="none"), "`guard` of LabelAugmenter"),
        (LabelAugmenter(guard=LeakGuard("(")), "`traces` of LeakGuard"),
        (HintAugmenter(guard=LeakGuard(answering="solver")), "`answering` of LeakGuard"),
        (LadderAugmenter([HintAugmenter(guard=LeakGuard(answering=["slover"]))]), "names \\['slover'\\]"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(augmenter, message):
    with pytest.raises(SettingsError, match=message):
        augmenter.check(Team())


class SmallLM(ScriptedLM):
    is_small = True


def test_small_models_climb_the_ladder_and_others_criticize():
    small, large = SmallLM(play()), ScriptedLM(play())
    assert isinstance(SuitableAugmenter().for_lms([small, small]), LadderAugmenter)
    assert isinstance(SuitableAugmenter().for_lms([small, large]), CriticAugmenter)
    assert isinstance(SuitableAugmenter().for_lms([]), CriticAugmenter)


# Reliance


def test_reliance_is_how_much_likelier_the_text_is_with_the_help():
    def play_again(prompt):
        if prompt.field("hint"):
            return chat_reply(facts="Omar likes milk.") if prompt.asks_for("facts") else right()
        return right() if "Omar" in (prompt.field("facts") or "") else play()(prompt)

    failed, context = fail(play_again, lm=ScoringLM)
    outcome = HintAugmenter().repair(failed, EXAMPLE, context)
    assert outcome.repair.attempts[-1].reliance == 2.0
    failed, context = fail(play(facts="Omar likes milk."), lm=ScoringLM)
    assert LabelAugmenter().repair(failed, EXAMPLE, context).repair.attempts[-1].reliance == 2.0


def test_a_sample_relies_on_its_demonstrations():
    near = dspy.Example(question="Eve likes milk. Who likes milk?", answer="Eve").with_inputs("question")

    def play_again(prompt):
        return right() if "Eve" in prompt.text and prompt.asks_for("answer") else play()(prompt)

    failed, context = fail(play_again, lm=ScoringLM, solved=[solve(near, "Eve likes milk.")])
    outcome = ResampleAugmenter().repair(failed, EXAMPLE, context)
    assert outcome.repair.attempts[-1].reliance == 2.0


def test_lms_that_cannot_score_leave_it_open():
    failed, context = fail(play(facts="Omar likes milk."))
    assert LabelAugmenter().repair(failed, EXAMPLE, context).repair.attempts[-1].reliance is None


def test_it_need_not_be_measured():
    failed, context = fail(play(facts="Omar likes milk."), lm=ScoringLM)
    outcome = LadderAugmenter([LabelAugmenter()], measure=False).repair(failed, EXAMPLE, context)
    assert outcome.repair.repaired
    assert outcome.repair.attempts[-1].reliance is None


def repaired(number, reliance):
    return Repair(f"parent {number}", (Attempt(0, "solver", "repaired", trajectory=f"{number}", reliance=reliance),))


def test_the_most_reliant_repairs_are_refused():
    repairs = [repaired(number, float(number)) for number in range(10)] + [repaired(10, None)]
    assert LadderAugmenter(drop_reliant=0.2).refuse(repairs) == {"8": RELIANT, "9": RELIANT}
    assert LadderAugmenter(drop_reliant=0).refuse(repairs) == {}
    assert LadderAugmenter(drop_reliant=0.2).refuse(repairs[-1:]) == {}


def test_solved_runs_of_an_empty_library_show_nothing():
    assert SolvedRuns().find_demos(Team(), questions(1)[0], 4) == {}


class Page:
    """A value that is stored as text only."""

    def __str__(self):
        return "page 1"


class WithPage(dspy.Module):
    def __init__(self):
        super().__init__()
        self.analyst = dspy.Predict("question -> facts")
        fields = {"page": (Any, dspy.InputField()), "facts": (str, dspy.InputField())}
        self.solver = dspy.Predict(dspy.Signature({**fields, "answer": (str, dspy.OutputField())}))

    def forward(self, question):
        return self.solver(page=Page(), facts=self.analyst(question=question).facts)


@pytest.mark.parametrize("lm", [ScriptedLM, ScoringLM])
def test_inputs_that_cannot_be_restored_are_not_measured(lm):
    failed, context = fail(play(facts="Omar likes milk."), program=WithPage(), lm=lm)
    outcome = LabelAugmenter().repair(failed, EXAMPLE, context)
    assert verdicts(outcome) == [("solver", "repaired")]
    assert outcome.repair.attempts[0].reliance is None
