"""A repair has to succeed twice: what follows the edit may have been lucky."""

from collections import Counter

import dspy
import pytest

from sirius_dspy import Collect, HintAugmenter, LabelAugmenter, LadderAugmenter, ResampleAugmenter
from sirius_dspy.errors import SettingsError
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, ToyLM, chat_reply
from tests import toy
from tests.team import Team, exact_match

pytestmark = pytest.mark.usefixtures("chat_adapter")

EXAMPLE = dspy.Example(question="Ann likes tea. Omar likes milk. Who?", answer="Omar").with_inputs("question")


def repair(rung, answers, confirmations, facts="It is Omar who likes milk.", temperature=1.0, asked=None):
    """Repair a run with one rung; the solver's answers come one after another, that of the failed run first."""
    left, temperatures = ["Ann", *answers], [] if asked is None else asked

    def play(prompt):
        if prompt.asks_for("answer"):
            temperatures.append(prompt.temperature)
            return chat_reply(answer=left.pop(0))
        return chat_reply(facts=facts if prompt.field("hint") else "Nothing.")

    program = Team()
    program.set_lm(ScriptedLM(play))
    rollouts = Rollouts(exact_match, run="r", iteration=1, lm_kwargs={"temperature": temperature}, num_threads=1)
    failed = rollouts.run_one(program, Task(EXAMPLE))
    context = RepairContext(program, rollouts, 1.0, frozenset({"analyst", "solver"}))
    outcome = LadderAugmenter([rung], confirmations=confirmations).repair(failed, EXAMPLE, context)
    return [attempt.verdict for attempt in outcome.repair.attempts], outcome.trajectories, left


RUNGS = [ResampleAugmenter(samples=1), HintAugmenter(shares=[0.5])]


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_what_does_not_succeed_again_is_no_repair(rung):
    verdicts, runs, _ = repair(rung, ["Omar", "Ann", "Ann", "Omar", "Omar"], confirmations=2)
    assert verdicts[0] == "unconfirmed"
    assert [run.reward for run in runs[:3]] == [1.0, 0.0, 0.0]
    assert {run.origin for run in runs[:3]} == {"confirmation"}  # which no training set is made of


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_one_more_success_is_enough(rung):
    verdicts, runs, left = repair(rung, ["Omar", "Ann", "Omar", "Omar"], confirmations=3)
    assert verdicts == ["repaired"]
    assert left == ["Omar"]
    assert [run.origin for run in runs] == ["repair", "confirmation", "confirmation"]


def test_the_confirmation_keeps_what_the_edited_step_wrote():
    _, runs, _ = repair(RUNGS[1], ["Omar", "Omar"], confirmations=1)
    assert [run.steps[0].outputs for run in runs] == [{"facts": "It is Omar who likes milk."}] * 2
    assert {run.parent for run in runs} == {runs[0].parent}


@pytest.mark.parametrize(("temperature", "confirming"), [(0, 1.0), (0.3, 0.3)])
def test_the_confirmation_is_sampled_even_if_the_samples_are_not(temperature, confirming):
    asked = []
    repair(RUNGS[1], ["Omar", "Omar"], confirmations=1, temperature=temperature, asked=asked)
    assert asked[1] != confirming
    assert asked[2] == confirming


def test_where_nothing_follows_there_is_nothing_to_confirm():
    verdicts, runs, left = repair(LabelAugmenter(), ["Ann"], confirmations=2)
    assert verdicts == ["repaired"]
    assert (len(runs), left) == (1, ["Ann"])


def test_a_sentence_that_holds_the_label_is_no_proof():
    verdicts, runs, _ = repair(RUNGS[1], ["Omar", "Ann", "Omar"], confirmations=1, facts="Omar likes milk.")
    assert verdicts == ["unconfirmed", "repaired"]
    assert [run.reward for run in runs[:2]] == [1.0, 0.0]


def test_it_can_be_left_out():
    verdicts, runs, left = repair(RUNGS[0], ["Omar", "Ann"], confirmations=0)
    assert verdicts == ["repaired"]
    assert (len(runs), left) == (1, ["Ann"])


def test_a_wrong_number_is_refused():
    with pytest.raises(SettingsError, match="`confirmations` of LadderAugmenter"):
        LadderAugmenter(confirmations=-1).check(Team())


def test_nothing_is_trained_on_luck(tmp_path):
    asked = Counter()

    def skill(prompt):  # odd numbers fail; their second answer is wrong, too, and the writer makes it right by chance
        if prompt.asks_for("doubled"):
            number = int(prompt.field("number"))
            asked[number] += 1
            return chat_reply(doubled=2 * number if number % 2 == 0 else f"guess {number} {asked[number]}")
        guess = prompt.field("doubled").split()
        if guess[0] != "guess":
            return chat_reply(reasoning="easy", answer=f"ans:{guess[0]}")
        asked[tuple(guess)] += 1
        is_lucky = guess[2] == "2" and asked[tuple(guess)] == 1
        return chat_reply(reasoning="luck", answer=f"ans:{2 * int(guess[1])}" if is_lucky else "no")

    program = toy.Doubling()
    program.set_lm(ToyLM(skill=skill))
    ladder = LadderAugmenter([ResampleAugmenter(samples=1, num_demos=0)])
    compiled = toy.optimizer(
        tmp_path, augmenter=ladder, iterations=1, num_threads=1, collect=Collect(samples=1)
    ).compile(program, trainset=toy.examples(range(4)), valset=toy.examples((4, 6)))
    assert compiled.detailed_results.iterations[1].repair["verdicts"] == {"unconfirmed": 2}
    rows = [path.read_text() for path in tmp_path.rglob("training/**/*.jsonl")]
    assert rows
    assert "guess" not in "".join(rows)
