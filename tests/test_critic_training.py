"""The critic as an agent of its own: fine-tuned on its advice that helped, and kept if it repairs as much as before."""

import json
import logging

import dspy
import pytest

from sirius_dspy import (
    CriticAugmenter,
    CriticTraining,
    LadderAugmenter,
    ProviderTrainer,
    RepairDemos,
    ResampleAugmenter,
    open_library,
)
from sirius_dspy.errors import RunMismatchError, SettingsError
from sirius_dspy.optimizer.reading import read_results
from sirius_dspy.report import Report, render_markdown
from sirius_dspy.report.experience import ALL_AGENTS, read_experience
from sirius_dspy.report.tables import critic_table
from sirius_dspy.testing import AugmenterContract, ScriptedLM, ToyLM, chat_reply
from sirius_dspy.tracking.events import Tracker
from tests import toy

pytestmark = pytest.mark.usefixtures("chat_adapter")

GOOD = "double the number"


def skill(prompt):
    """The toy's skill, but only good advice helps."""
    if prompt.asks_for("doubled") and prompt.field("feedback") not in ("", None, GOOD):
        return chat_reply(doubled="no better idea")
    return toy.skill(prompt)


def advise(prompt):
    """Helps with the smaller numbers, and with all of them once it has learned."""
    helps = "+" in prompt.model or int(prompt.field("task")) < 8
    return chat_reply(feedback=GOOD if helps else "try harder")


def advise_before_training(prompt):
    """Helps until it has learned anything."""
    return chat_reply(feedback=GOOD if "+" not in prompt.model else "try harder")


def never_advise(prompt):
    return chat_reply(feedback="try harder" if int(prompt.field("task")) > 7 else GOOD)


TRAINING = CriticTraining(min_rows=4, held_out=0.5)


def critic_of(answer=advise):
    return ToyLM("toy/critic", answer)


def compile_toy(run_dir, augmenter, **settings):
    options = {"iterations": 2, "num_threads": 1, "augmenter": augmenter, **settings}
    examples = toy.examples(range(16))
    program = toy.Doubling()
    program.set_lm(ToyLM(skill=skill))
    return toy.optimizer(run_dir, **options).compile(program, trainset=examples, valset=examples[:8])


def learned(compiled, iteration=2):
    return compiled.detailed_results.iterations[iteration].critic


def repairs_by_number(run_dir, iteration=2):
    """Number of the example to its repairs, in the order in which they were stored."""
    with open_library(run_dir) as library:
        number_of = {run.id: run.steps[0].inputs["number"] for run in library.trajectories(iteration=iteration)}
        found = {}
        for repair in library.repairs(iteration=iteration):
            found.setdefault(number_of[repair.parent], []).append(repair)
        assert library.verify() == []
        return found


def rows_of(run_dir):
    text = (run_dir / "training/iteration-2/critic.jsonl").read_text()
    return [json.loads(line)["messages"] for line in text.splitlines()]


def test_a_critic_that_repairs_more_is_kept_and_repairs_the_rest(tmp_path):
    compiled = compile_toy(tmp_path, CriticAugmenter(critic_of(), training=TRAINING))
    assert learned(compiled, 1) is None
    critic = learned(compiled)
    assert (critic.rows, critic.tried, critic.repaired_before, critic.repaired, critic.kept) == (4, 2, 0, 2, True)
    assert (critic.rate_before, critic.rate) == (0.0, 1.0)
    assert critic.base == critic.previous == "toy/critic"
    assert critic.lm.startswith("toy/critic+")
    repairs = repairs_by_number(tmp_path)
    assert set(repairs) == {9, 11, 13, 15}
    assert sorted([item.repaired for item in of_number] for of_number in repairs.values()) == [
        [False, True],
        [False, True],
        [True],
        [True],
    ]
    result = compiled.detailed_results.iterations[2]
    assert (result.repair.tried, result.repair.repaired) == (4, 4)
    assert result.metrics["critic/rate"] == 1.0
    assert set(result.agents) == {"doubler", "writer.predict"}
    assert read_results(tmp_path).iterations[2].critic == critic


def test_its_rows_are_the_prompts_that_were_sent_without_demonstrations(tmp_path):
    sent = []

    def listen(prompt):
        sent.append((prompt.system, prompt.user))
        return advise(prompt)

    shown = dspy.Example(task="0", team="", agent="doubler", agent_inputs="0", agent_answer="1", correct_answer="0")
    demos = RepairDemos(critique=[dspy.Example(**shown, feedback=GOOD)])
    compile_toy(tmp_path, CriticAugmenter(critic_of(listen), training=TRAINING, demos=demos))
    rows = rows_of(tmp_path)
    assert [[message["role"] for message in row] for row in rows] == [["system", "user", "assistant"]] * 4
    assert {(row[0]["content"], row[1]["content"]) for row in rows} < set(sent)
    assert {row[2]["content"].strip() for row in rows} == {chat_reply(feedback=GOOD)}
    with open_library(tmp_path) as library:
        assert library.verify_rows(tmp_path / "training/iteration-2/critic.jsonl") == []


def test_a_critic_that_repairs_less_is_not_kept(tmp_path):
    augmenter = CriticAugmenter(critic_of(advise_before_training), training=TRAINING, max_repairs=4)
    critic = learned(compile_toy(tmp_path, augmenter))
    assert (critic.tried, critic.repaired_before, critic.repaired, critic.kept) == (2, 2, 0, False)
    assert all(of_number[0].repaired for of_number in repairs_by_number(tmp_path).values())


def test_a_critic_that_repairs_nothing_is_not_kept(tmp_path):
    critic = learned(compile_toy(tmp_path, CriticAugmenter(critic_of(never_advise), training=TRAINING)))
    assert (critic.repaired_before, critic.repaired, critic.kept) == (0, 0, False)


@pytest.mark.parametrize("train_from", ["base", "current"])
def test_a_critic_that_was_kept_goes_on_in_the_next_iteration(train_from, tmp_path):
    def improve(prompt):
        number, trainings = int(prompt.field("task")), prompt.model.count("+")
        return chat_reply(feedback=GOOD if number < 8 or (trainings and number < 12) else "try harder")

    augmenter = CriticAugmenter(critic_of(improve), training=CriticTraining(min_rows=4, held_out=0.9))
    compiled = compile_toy(tmp_path, augmenter, iterations=3, trainer=ProviderTrainer(train_from=train_from))
    second, third = learned(compiled, 2), learned(compiled, 3)
    assert second.kept
    assert third.previous == second.lm
    assert third.base == ("toy/critic" if train_from == "base" else second.lm)
    assert third.rows == 6
    assert not third.kept


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (CriticTraining(), "there are 4 rows, and `min_rows` is 20"),
        (CriticTraining(min_rows=5), "there are 4 rows, and `min_rows` is 5"),
    ],
)
def test_too_few_rows_change_nothing(training, said, tmp_path, caplog):
    caplog.set_level(logging.INFO, "sirius_dspy")
    compiled = compile_toy(tmp_path / "learning", CriticAugmenter(critic_of(), training=training))
    assert [record.message for record in caplog.records if "The critic" in record.message] == [
        f"The critic is not fine-tuned in iteration 2: {said}."
    ]
    plain = compile_toy(tmp_path / "plain", CriticAugmenter(critic_of()))
    assert learned(compiled) is None
    assert compiled.detailed_results.iterations[2].repair == plain.detailed_results.iterations[2].repair


def test_without_a_failure_that_it_has_not_seen_it_is_not_trained(tmp_path, caplog):
    caplog.set_level(logging.INFO, "sirius_dspy")
    compiled = compile_toy(
        tmp_path, CriticAugmenter(ToyLM("toy/critic", lambda prompt: chat_reply(feedback=GOOD)), training=TRAINING)
    )
    assert learned(compiled) is None
    assert "no failed run is left to compare it on" in caplog.text


def test_rows_can_be_limited(tmp_path):
    training = CriticTraining(min_rows=4, held_out=0.5, max_rows=3)
    assert learned(compile_toy(tmp_path, CriticAugmenter(critic_of(), training=training))).rows == 3
    assert len(rows_of(tmp_path)) == 3


def test_a_critic_in_a_ladder_learns_too_and_only_its_rung_is_repeated(tmp_path):
    ladder = LadderAugmenter([ResampleAugmenter(samples=1), CriticAugmenter(critic_of(), training=TRAINING)])
    critic = learned(compile_toy(tmp_path, ladder))
    assert (critic.rows, critic.tried, critic.repaired_before, critic.repaired, critic.kept) == (4, 2, 0, 2, True)
    rungs = [
        [{attempt.rung for attempt in item.attempts} for item in found]
        for found in repairs_by_number(tmp_path).values()
    ]
    assert sorted(map(len, rungs)) == [1, 1, 2, 2]
    assert all(found[0] == {"resample", "critic"} for found in rungs)
    assert all(found[1] == {"critic"} for found in rungs if len(found) == 2)


def test_a_critic_that_has_learned_sees_no_demonstrations():
    demos = RepairDemos(critique=[dspy.Example(task="1", feedback=GOOD)])
    augmenter = CriticAugmenter(critic_of(), training=TRAINING, demos=demos)
    other = critic_of()
    changed = augmenter.with_critic(other)
    assert changed.critic is other
    assert changed.demos.critique == ()
    assert augmenter.demos is demos
    assert augmenter.critic is not other


# Resuming


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A compile that nobody interrupts, and the number of calls of its critic."""
    calls = []
    with dspy.context(adapter=toy.ADAPTER):
        augmenter = CriticAugmenter(critic_of(counting(calls)), training=TRAINING)
        return compile_toy(tmp_path_factory.mktemp("undisturbed"), augmenter), len(calls)


class StoppedAt(Tracker):
    """Interrupts the compile at an event of its second iteration."""

    def __init__(self, name, number):
        self.name = name
        self.left = number

    def _count(self, name, event):
        self.left -= name == self.name and event.iteration == 2
        if self.left == 0:
            raise KeyboardInterrupt

    def on_repaired(self, event):
        self._count("repaired", event)

    def on_trained(self, event):
        self._count("trained", event)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("repaired", 1),  # with the critic before
        ("trained", 1),
        ("repaired", 3),  # with the new critic
        ("repaired", 5),  # after the decision
        ("trained", 2),  # an agent
    ],
)
def test_an_interrupted_compile_decides_the_same_and_repeats_no_call(name, number, tmp_path, undisturbed):
    expected, num_expected = undisturbed
    calls, jobs = [], JobsSeen()

    def compile_again(tracker):
        augmenter = CriticAugmenter(critic_of(counting(calls)), training=TRAINING)
        return compile_toy(tmp_path, augmenter, tracker=tracker)

    with pytest.raises(KeyboardInterrupt):
        compile_again(StoppedAt(name, number))
    resumed = compile_again(jobs)
    assert without_seconds(learned(resumed)) == without_seconds(learned(expected))
    assert resumed.detailed_results.iterations[2].repair == expected.detailed_results.iterations[2].repair
    assert jobs.agents.count("critic") == (1 if (name, number) == ("repaired", 1) else 0)
    in_flight = 2 if name == "repaired" else 0  # calls of a repair that the interrupt dropped
    assert num_expected <= len(calls) <= num_expected + in_flight


class JobsSeen(Tracker):
    """Which agents were trained."""

    def __init__(self):
        self.agents = []

    def on_trained(self, event):
        self.agents.append(event.agent)


def counting(calls):
    def answer(prompt):
        calls.append(prompt.text)
        return advise(prompt)

    return answer


def test_the_report_shows_both_rates(undisturbed):
    compiled, _ = undisturbed
    rows = critic_table(compiled.detailed_results).rows
    assert [row[:-1] for row in rows] == [("2", "4", "2", "0.0 %", "100.0 %", "yes")]
    assert "## Critic" in render_markdown(Report(compiled.detailed_results))


def test_a_run_that_both_critics_advised_on_counts_once(undisturbed):
    results = undisturbed[0].detailed_results
    with open_library(results.run_dir) as library:
        experience = read_experience(library, results)
    counts = {funnel.agent: funnel.counts for funnel in experience.funnels if funnel.iteration == 2}
    assert (counts[ALL_AGENTS]["failed"], counts[ALL_AGENTS]["repaired"]) == (4, 4)
    stories = [story for story in experience.stories if story.failed.iteration == 2]
    assert stories
    assert all(story.repair.repaired for story in stories)


class TestContract(AugmenterContract):
    @pytest.fixture(params=["alone", "in a ladder"])
    def augmenter(self, request):
        critic = CriticAugmenter(critic_of(lambda prompt: chat_reply(feedback=GOOD)), training=TRAINING)
        return critic if request.param == "alone" else LadderAugmenter([ResampleAugmenter(), critic])


def without_seconds(critic):
    return critic.to_dict() | {"seconds": 0.0}


# Settings


@pytest.mark.parametrize(
    ("augmenter", "said"),
    [
        (CriticAugmenter(training=CriticTraining()), "`critic` is None: each agent advises itself"),
        (CriticAugmenter(ScriptedLM([]), training=CriticTraining()), "but SuitableTrainer cannot fine-tune its LM"),
        (CriticAugmenter(critic_of(), training=CriticTraining(held_out=0)), "`held_out` of CriticTraining is 0"),
        (LadderAugmenter([CriticAugmenter(training=CriticTraining())]), "`critic` is None: each agent advises itself"),
        (LadderAugmenter([CriticAugmenter(ScriptedLM([]), training=CriticTraining())]), "cannot fine-tune"),
    ],
)
def test_a_critic_that_cannot_learn_is_refused_before_anything_is_done(augmenter, said, tmp_path):
    with pytest.raises(SettingsError, match=said):
        compile_toy(tmp_path / "run", augmenter)
    assert not (tmp_path / "run").exists()


def test_an_agent_with_the_name_of_the_critic_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"an agent of that name.*SiriuS\(agents="):
        compile_toy(tmp_path, CriticAugmenter(critic_of(), training=TRAINING), agents={"critic": ["doubler"]})


def test_the_training_is_part_of_the_identity_of_a_compile(tmp_path):
    compile_toy(tmp_path, CriticAugmenter(critic_of(), training=TRAINING), iterations=1)
    with pytest.raises(RunMismatchError, match="held_out"):
        compile_toy(tmp_path, CriticAugmenter(critic_of(), training=CriticTraining(min_rows=4)), iterations=1)


def test_a_plan_counts_the_job(tmp_path):
    augmenter = CriticAugmenter(critic_of(), training=TRAINING)
    examples = toy.examples()
    plan = toy.optimizer(tmp_path, augmenter=augmenter).plan(toy.student(), trainset=examples, valset=examples)
    jobs = [(stage.iteration, stage.units.high) for stage in plan.stages if stage.stage == "train critic"]
    assert jobs == [(2, 1)]
    repairs = [stage.units.high for stage in plan.stages if stage.stage == "repair"]
    assert repairs == [8, 12]  # half of the runs are repaired twice
