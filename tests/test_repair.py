"""Algorithm 2 of the paper, call by call, with an LM whose part at every stage is written down."""

import random
from collections import Counter
from dataclasses import replace
from functools import partial

import dspy
import pytest
from dspy.lm15 import AuthError, InvalidRequestError, ServerError

from sirius_dspy import CriticAugmenter, Curator, RepairDemos
from sirius_dspy.errors import LibraryError, MetricError, RolloutError, UnfinishedError, UnpreparedProgramError
from sirius_dspy.repair.augmenters import RepairOutcome
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.prompts import Critique
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import AugmenterContract, ScriptedLM, chat_reply
from sirius_dspy.trajectory import Usage
from tests.team import Team

EXAMPLE = dspy.Example(question="Capital of France?", answer="Paris").with_inputs("question")
RIGHT, WRONG, GARBLED = chat_reply(answer="Paris"), chat_reply(answer="Rome"), "well, well"


pytestmark = pytest.mark.usefixtures("chat_adapter")


DEFAULTS = {
    "analyst": chat_reply(facts="No idea."),
    "solver": WRONG,
    "critique analyst": chat_reply(feedback="Name a country's seat of government."),
    "critique solver": chat_reply(feedback="Think of the Seine."),
    "again analyst": chat_reply(facts="It lies on the Seine."),
    "again solver": WRONG.replace("Rome", "Lyon"),
    "rephrase": lambda prompt: chat_reply(rewritten=prompt.field("text")),
}


class World:
    """An LM that plays every part of a repair, and notes the order in which the parts came.

    A part's reply is a text, an exception, or a function of the prompt; a list is used up in order, its last item
    stays.
    """

    def __init__(self, replies=None):
        self.replies = {**DEFAULTS, **(replies or {})}
        self.parts = []
        self.prompts = {}
        self.played = Counter()
        self.lm = ScriptedLM(self, num_retries=0)

    def __call__(self, prompt):
        part = self.part(prompt)
        self.parts.append(part)
        self.prompts.setdefault(part, []).append(prompt)
        self.played[part] += 1
        reply = self.replies[part]
        if isinstance(reply, list):
            reply = reply[min(self.played[part], len(reply)) - 1]
        if isinstance(reply, Exception):
            raise reply
        return reply(prompt) if callable(reply) else reply

    @staticmethod
    def part(prompt):
        if prompt.asks_for("feedback"):
            return "critique " + prompt.field("agent")
        if prompt.asks_for("rewritten"):
            return "rephrase"
        agent = "analyst" if prompt.asks_for("facts") else "solver"
        return f"again {agent}" if prompt.field("feedback") is not None else agent


def exact_match(example, prediction, trace=None):
    return prediction.answer == example.answer


def fail(program, lm, example=EXAMPLE, metric=exact_match, **lineage):
    """A failed run of the program, and the rollouts it belongs to."""
    program.set_lm(lm)
    rollouts = Rollouts(metric, run="r", iteration=3, seed=7, num_threads=1)
    return rollouts, replace(rollouts.run_one(program, Task(example, 2)), **lineage)


def repair(world, augmenter=None, program=None, editable=None, **settings):
    """Let the world fail once, forget its parts, and repair."""
    program = program or Team()
    rollouts, failed = fail(program, world.lm, **settings)
    world.parts.clear(), world.prompts.clear()
    editable = frozenset(name for name, _ in program.named_predictors()) if editable is None else frozenset(editable)
    context = RepairContext(program, rollouts, 1.0, editable)
    repaired = (augmenter or CriticAugmenter()).repair(failed, settings.get("example", EXAMPLE), context)
    return failed, repaired.repair.attempts, repaired.trajectories


def verdicts(attempts):
    return [attempt.verdict for attempt in attempts]


class TestCriticAugmenter(AugmenterContract):
    @pytest.fixture
    def augmenter(self):
        return CriticAugmenter(max_feedback=2, max_regenerations=2)


# The order of calls


def test_agents_are_tried_one_at_a_time_in_call_order_each_from_the_original_run():
    world = World()
    failed, attempts, trajectories = repair(world)
    assert world.parts == [
        *("critique analyst", "again analyst", "rephrase", "solver"),  # the solver reads the new facts: live
        *("critique solver", "again solver"),  # its answer is not rephrased, and nobody reads it
    ]
    assert verdicts(attempts) == ["failed", "failed"]
    assert [(attempt.position, attempt.predictor) for attempt in attempts] == [(0, "analyst"), (1, "solver")]
    first, second = trajectories
    assert [step.source for step in first.steps] == ["edited", "live"]
    assert [step.source for step in second.steps] == ["recorded", "edited"]
    assert second.steps[0].outputs == failed.steps[0].outputs  # the first edit is not carried along
    assert [attempt.trajectory for attempt in attempts] == [first.id, second.id]
    assert [attempt.reward for attempt in attempts] == [0.0, 0.0]


def test_the_first_success_ends_the_repair():
    world = World({"solver": lambda prompt: RIGHT if "Seine" in prompt.field("facts") else WRONG})
    failed, attempts, (run,) = repair(world)
    assert world.parts == ["critique analyst", "again analyst", "rephrase", "solver"]
    assert verdicts(attempts) == ["repaired"]
    assert (run.reward, run.origin, run.parent, run.edited) == (1.0, "repair", failed.id, 0)
    assert (run.run, run.iteration, run.sample, run.seed) == ("r", 3, 2, 7)
    assert (run.example_key, run.program) == (failed.example_key, failed.program)
    assert run.prediction == {"answer": "Paris"}


@pytest.mark.parametrize(("max_feedback", "max_regenerations"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_the_limits_count_critiques_per_step_and_answers_per_critique(max_feedback, max_regenerations):
    world = World()
    augmenter = CriticAugmenter(max_feedback=max_feedback, max_regenerations=max_regenerations)
    _, attempts, _ = repair(world, augmenter)
    answers = max_feedback * max_regenerations
    assert {part: world.parts.count(part) for part in set(world.parts)} == {
        "critique analyst": max_feedback,
        "again analyst": answers,
        "rephrase": answers,
        "solver": answers,
        "critique solver": max_feedback,
        "again solver": answers,
    }
    assert len(attempts) == 2 * answers


def test_new_answers_to_one_critique_come_before_the_next_critique():
    world = World()
    repair(world, CriticAugmenter(max_feedback=2, max_regenerations=2), editable={"solver"})
    assert world.parts == ["critique solver", "again solver", "again solver"] * 2


def test_a_success_of_a_later_try_counts():
    world = World({"again solver": [WRONG.replace("Rome", "Lyon"), GARBLED, WRONG, RIGHT]})
    _, attempts, trajectories = repair(world, CriticAugmenter(max_regenerations=5), editable={"solver"})
    assert verdicts(attempts) == ["failed", "unparsed", "unchanged", "repaired"]
    assert [run.reward for run in trajectories] == [0.0, 1.0]


def test_a_repair_feeds_the_edited_agent_and_those_after_it():
    agents = {"analyst": ["analyst"], "solver": ["solver"]}
    facts_help = World({"solver": lambda prompt: RIGHT if "Seine" in prompt.field("facts") else WRONG})
    answer_helps = World({"again solver": RIGHT})
    num_rows = []
    for world in (facts_help, answer_helps):
        _, _, trajectories = repair(world)
        sets = Curator().curate(Team(), trajectories, agents, threshold=1.0)
        num_rows.append({agent: len(found.rows) for agent, found in sets.items()})
    assert num_rows == [{"analyst": 1, "solver": 1}, {"analyst": 0, "solver": 1}]


# Who sees what


def test_the_critic_sees_inputs_outputs_and_labels_and_nothing_else():
    world = World()
    repair(world)
    (prompt,) = world.prompts["critique solver"]
    names = ("task", "team", "agent", "agent_inputs", "agent_answer", "correct_answer")
    assert {name: prompt.field(name) for name in names} == {
        "task": "Capital of France?",
        "team": "[analyst]\nNo idea.\n\n[solver]\nRome",
        "agent": "solver",
        "agent_inputs": "question: Capital of France?\nfacts: No idea.",
        "agent_answer": "Rome",
        "correct_answer": "Paris",
    }
    shown = prompt.user.split("\n\nRespond with")[0]
    for name in names:
        shown = shown.replace(f"[[ ## {name} ## ]]\n{prompt.field(name)}", "")
    assert shown.strip() == ""
    assert len(prompt.messages) == 1


def test_only_the_critic_sees_the_labels():
    world = World({"critique analyst": chat_reply(feedback="Think.")})
    repair(world, CriticAugmenter(max_feedback=2))
    told = {part: any("Paris" in prompt.text for prompt in prompts) for part, prompts in world.prompts.items()}
    assert {part for part, knows in told.items() if knows} == {"critique analyst", "critique solver"}


def test_an_agent_need_not_see_its_first_answer():
    world = World()
    repair(world, CriticAugmenter(show_earlier=False))
    (prompt,) = world.prompts["again solver"]
    assert prompt.field("feedback") == "Think of the Seine."
    assert prompt.field("earlier_answer") is None
    assert "Rome" not in prompt.text


def demo(**fields):
    return dspy.Example(**fields)


def test_demonstrations_are_shown_to_the_part_they_are_of_and_to_no_other():
    demos = RepairDemos(
        critique=[demo(**dict.fromkeys(Critique.fields, "in the critique demo"))],
        regenerate={
            "solver": [demo(question="q", facts="f", feedback="f", earlier_answer="e", answer="in the solver demo")]
        },
        rephrase=[demo(task="t", text="t", rewritten="in the rephrase demo")],
    )
    world = World()
    _, _, trajectories = repair(world, CriticAugmenter(demos=demos))
    seen = {
        part: [d for d in ("critique", "solver", "rephrase") if f"in the {d} demo" in prompts[0].text]
        for part, prompts in world.prompts.items()
    }
    assert seen == {
        "critique analyst": ["critique"],
        "critique solver": ["critique"],
        "again analyst": [],
        "again solver": ["solver"],
        "rephrase": ["rephrase"],
        "solver": [],
    }
    sets = Curator().curate(Team(), trajectories, {"solver": ["solver"]}, threshold=0.0)
    assert sets["solver"].rows
    assert "demo" not in str(sets["solver"].chat)


def test_demonstrations_for_an_unknown_predictor_are_refused():
    augmenter = CriticAugmenter(demos=RepairDemos(regenerate={"solve": []}))
    with pytest.raises(UnpreparedProgramError, match=r"\['solve'\].*\['analyst', 'solver'\]"):
        augmenter.check(Team())


def test_an_agent_sees_its_own_inputs_its_first_answer_and_the_feedback():
    world = World()
    repair(world)
    (prompt,) = world.prompts["again solver"]
    names = ("question", "facts", "earlier_answer", "feedback")
    shown = [prompt.field(name) for name in names]
    assert shown == ["Capital of France?", "No idea.", "Rome", "Think of the Seine."]
    assert Team().solver.signature.instructions in prompt.system


def test_critic_and_rephraser_can_be_other_lms():
    critic = ScriptedLM(World(), model="scripted/critic")
    rephraser = ScriptedLM(World(), model="scripted/rephraser")
    world = World({"critique analyst": None, "critique solver": None, "rephrase": None})
    repair(world, CriticAugmenter(critic, rephraser=rephraser))
    assert [World.part(prompt) for prompt in critic.requests] == ["critique analyst", "critique solver"]
    assert [World.part(prompt) for prompt in rephraser.requests] == ["rephrase"]
    assert world.parts == ["again analyst", "solver", "again solver"]


def test_by_default_each_agent_is_its_own_critic():
    program, worlds = Team(), {"analyst": World(), "solver": World()}
    rollouts, failed = fail(program, ScriptedLM(World()))
    for name, world in worlds.items():
        getattr(program, name).set_lm(world.lm)
    CriticAugmenter().repair(failed, EXAMPLE, RepairContext(program, rollouts, 1.0, frozenset(worlds)))
    assert worlds["analyst"].parts == ["critique analyst", "again analyst", "rephrase"]
    assert worlds["solver"].parts == ["solver", "critique solver", "again solver"]


def test_a_program_without_lms_of_its_own_uses_dspys():
    program, world = Team(), World({"again solver": RIGHT})
    dspy.configure(lm=world.lm)
    rollouts = Rollouts(exact_match, num_threads=1)
    failed = rollouts.run_one(program, Task(EXAMPLE))
    found = CriticAugmenter().repair(failed, EXAMPLE, RepairContext(program, rollouts, 1.0, frozenset({"solver"})))
    assert verdicts(found.repair.attempts) == ["repaired"]


def test_a_frozen_agent_is_neither_criticised_nor_edited():
    world = World()
    _, attempts, _ = repair(world, editable={"solver"})
    assert world.parts == ["critique solver", "again solver"]
    assert {attempt.predictor for attempt in attempts} == {"solver"}


def test_retries_get_a_temperature_and_every_call_a_seed_of_its_own():
    world = World()
    repair(world, CriticAugmenter(max_feedback=2, max_regenerations=2, temperature=0.9))
    for part in ("critique analyst", "critique solver"):
        assert [prompt.temperature for prompt in world.prompts[part]] == [None, 0.9]
    for part in ("again analyst", "again solver", "rephrase"):
        assert [prompt.temperature for prompt in world.prompts[part]] == [None, 0.9, 0.9, 0.9]
    seeds = [prompt.seed for prompts in world.prompts.values() for prompt in prompts]
    assert None not in seeds
    assert len(set(seeds)) == len(seeds)


def test_the_same_repair_asks_with_the_same_seeds():
    augmenter, seeds = CriticAugmenter(max_regenerations=2), []
    for _ in range(2):
        world = World()
        repair(world, augmenter)
        seeds.append([prompt.seed for prompt in world.lm.requests])
    assert seeds[0] == seeds[1]


# Runs that an augmenter makes


def test_a_rerun_is_a_repair_whose_steps_are_all_new():
    program, world = Team(), World()
    rollouts, failed = fail(program, world.lm)
    rollouts = replace(rollouts, lm_kwargs={"temperature": 0.8})
    context = RepairContext(program, rollouts, 1.0, frozenset({"analyst", "solver"}))
    before = world.lm.calls
    again, other = (context.rerun(failed, EXAMPLE, key) for key in ("again", "once more"))
    assert (again.origin, again.parent, again.edited) == ("repair", failed.id, 0)
    assert (again.example_key, again.run, again.iteration, again.sample) == (failed.example_key, "r", 3, 2)
    assert again.taught_steps == again.steps
    assert [step.source for step in [*again.steps, *other.steps]] == ["live"] * 4
    asked = world.lm.requests[before:]
    assert [prompt.temperature for prompt in asked] == [0.8] * 4
    assert len({prompt.seed for prompt in asked}) == 4


# What is rephrased


def test_what_the_rephraser_wrote_is_what_is_replayed_and_taught():
    world = World(
        {
            "again analyst": chat_reply(facts="As the feedback says, it lies on the Seine."),
            "rephrase": chat_reply(rewritten="It lies on the Seine."),
            "solver": lambda prompt: RIGHT if prompt.field("facts") == "It lies on the Seine." else WRONG,
        }
    )
    _, (attempt,), (run,) = repair(world)
    assert attempt.verdict == "repaired"
    assert attempt.feedback == "Name a country's seat of government."
    assert attempt.regenerated == {"facts": "As the feedback says, it lies on the Seine."}
    assert attempt.rephrased == run.steps[0].outputs == {"facts": "It lies on the Seine."}
    assert world.prompts["rephrase"][0].field("task") == "Capital of France?"


class Rich(Team):
    def __init__(self):
        super().__init__()
        self.analyst = dspy.Predict("question -> facts, sources: list[str], count: int, note")
        self.solver = dspy.Predict("question, facts -> reasoning, answer")


def test_only_free_text_is_rephrased_and_answers_never():
    world = World(
        {
            "analyst": chat_reply(facts="No idea.", sources='["a"]', count=1, note="-"),
            "solver": chat_reply(reasoning="A guess.", answer="Rome"),
            "again analyst": chat_reply(facts="On the Seine.", sources='["b"]', count=2, note=""),
            "again solver": chat_reply(reasoning="It lies there.", answer="Paris"),
            "rephrase": lambda prompt: chat_reply(rewritten=prompt.field("text").upper()),
        }
    )
    _, attempts, trajectories = repair(world, program=Rich())
    assert [prompt.field("text") for prompt in world.prompts["rephrase"]] == ["On the Seine.", "It lies there."]
    assert attempts[0].rephrased == {"facts": "ON THE SEINE.", "sources": ["b"], "count": 2, "note": ""}
    assert attempts[1].rephrased == {"reasoning": "IT LIES THERE.", "answer": "Paris"}
    assert trajectories[1].steps[1].outputs == attempts[1].rephrased


@pytest.mark.parametrize("reply", [GARBLED, chat_reply(rewritten="")], ids=str)
def test_a_rephraser_that_gives_nothing_leaves_the_text(reply):
    world = World({"rephrase": reply})
    _, attempts, _ = repair(world, editable={"analyst"})
    assert attempts[0].rephrased == {"facts": "It lies on the Seine."}


def test_without_rephrasing_the_leak_guard_stands_alone():
    world = World({"again analyst": chat_reply(facts="As the feedback says, it lies on the Seine.")})
    _, attempts, trajectories = repair(world, CriticAugmenter(rephrase=False), editable={"analyst"})
    assert world.parts == ["critique analyst", "again analyst"]
    assert verdicts(attempts) == ["leaked"]
    assert trajectories == ()


def test_without_labels_named_like_it_the_last_step_is_the_answer():
    example = dspy.Example(question="Capital of France?", gold="Paris").with_inputs("question")
    world = World({"again solver": RIGHT})
    _, attempts, _ = repair(
        world,
        example=example,
        metric=lambda example, prediction: prediction.answer == example.gold,
        editable={"solver"},
    )
    assert verdicts(attempts) == ["repaired"]  # not leaked, though it newly carries the gold answer
    assert "rephrase" not in world.parts


# Every verdict


def test_the_agent_repeats_itself():
    world = World({"again analyst": DEFAULTS["analyst"], "again solver": WRONG})
    _, attempts, trajectories = repair(world)
    assert verdicts(attempts) == ["unchanged", "unchanged"]
    assert world.parts == ["critique analyst", "again analyst", "critique solver", "again solver"]
    assert trajectories == ()


@pytest.mark.parametrize("reply", [GARBLED, chat_reply(feedback=" ")], ids=str)
def test_a_critic_without_a_word_costs_its_try(reply):
    world = World({"critique solver": reply})
    _, attempts, _ = repair(world, CriticAugmenter(max_feedback=2, max_regenerations=3), editable={"solver"})
    assert verdicts(attempts) == ["unparsed", "unparsed"]
    assert [attempt.detail for attempt in attempts] == ["no feedback"] * 2
    assert "again solver" not in world.parts


@pytest.mark.parametrize("part", ["critique analyst", "again analyst", "rephrase"])
def test_a_repair_does_not_end_while_an_lm_is_down(part):
    with pytest.raises(UnfinishedError, match="LMServerError"):
        repair(World({part: ServerError("down")}), editable={"analyst"})


def test_a_new_answer_that_does_not_parse():
    world = World({"again solver": GARBLED})
    _, (attempt,), trajectories = repair(world, editable={"solver"})
    assert (attempt.verdict, attempt.detail) == ("unparsed", "no new answer")
    assert attempt.feedback == "Think of the Seine."
    assert attempt.regenerated is None
    assert trajectories == ()


def cut_off(lm, text):
    """The LM whose replies with this text end at the token limit."""
    whole = lm.engine.complete

    def complete(request):
        response = whole(request)
        return replace(response, finish_reason="length") if text in response.message.text else response

    lm.engine.complete = complete


def test_a_new_answer_that_was_cut_off_is_no_answer():
    world = World({"again solver": RIGHT})
    cut_off(world.lm, "Paris")
    _, (attempt,), trajectories = repair(world, editable={"solver"})
    assert (attempt.verdict, attempt.detail) == ("unparsed", "the new answer was cut off")
    assert trajectories == ()


def test_a_rephrasing_that_was_cut_off_leaves_the_text():
    world = World({"rephrase": chat_reply(rewritten="It lies on")})
    cut_off(world.lm, "[[ ## rewritten ## ]]")
    _, (attempt,), _ = repair(world, editable={"analyst"})
    assert attempt.rephrased == {"facts": "It lies on the Seine."}


def test_an_edit_that_carries_the_gold_answer_ahead():
    world = World({"again analyst": chat_reply(facts="The capital is Paris."), "solver": [WRONG, RIGHT]})
    _, (attempt,), trajectories = repair(world, editable={"analyst"})
    assert attempt.verdict == "leaked"
    assert "'Paris'" in attempt.detail
    assert attempt.rephrased == {"facts": "The capital is Paris."}
    assert world.parts == ["critique analyst", "again analyst", "rephrase"]
    assert trajectories == ()


def test_a_guard_of_ones_own_is_asked():
    class Strict:
        def leak(self, outputs, step, labels, *, answers):
            return f"{step.predictor} {outputs['answer']} {labels} {answers}"

    _, (attempt,), _ = repair(World(), CriticAugmenter(guard=Strict()), editable={"solver"})
    assert (attempt.verdict, attempt.detail) == ("leaked", "solver Lyon {'answer': 'Paris'} True")


def test_a_replay_that_does_not_repeat_its_recording():
    class Clock(Team):
        def forward(self, question):
            facts = self.analyst(question=f"{question} {random.random()}").facts
            return self.solver(question=question, facts=facts)

    world = World()
    _, (attempt,), trajectories = repair(world, program=Clock(), editable={"solver"})
    assert attempt.verdict == "diverged"
    assert "clocks" in attempt.detail
    assert trajectories == ()
    assert world.parts == ["critique solver", "again solver"]  # the replay stopped before it asked an LM


def test_a_replay_that_fails_later_is_a_failed_attempt_with_its_run():
    world = World({"solver": [WRONG, GARBLED]})
    _, (attempt,), (run,) = repair(world, editable={"analyst"})
    assert (attempt.verdict, attempt.reward, attempt.trajectory) == ("failed", 0.0, run.id)
    assert run.failure.kind == "AdapterParseError"


def constant(score, example, prediction):
    return score


def test_a_score_at_the_threshold_is_a_success_and_one_below_is_none():
    found = []
    for score in (0.5, 0.49):
        program, world = Team(), World()
        rollouts, failed = fail(program, world.lm, metric=partial(constant, score))
        context = RepairContext(program, rollouts, 0.5, frozenset({"solver"}))
        found += verdicts(CriticAugmenter().repair(failed, EXAMPLE, context).repair.attempts)
    assert found == ["repaired", "failed"]


# Steps of all kinds


def test_an_answer_that_did_not_parse_is_repaired():
    world = World({"solver": GARBLED, "again solver": RIGHT})
    failed, attempts, (run,) = repair(world, editable={"solver"})
    assert failed.failure.kind == "AdapterParseError"
    assert world.prompts["again solver"][0].field("earlier_answer") == GARBLED
    assert f"[solver]\n{GARBLED}" in world.prompts["critique solver"][0].field("team")
    assert verdicts(attempts) == ["repaired"]
    assert (run.reward, run.failure) == (1.0, None)


def test_a_run_that_ended_at_its_first_agent_is_repaired_to_the_end():
    world = World({"analyst": GARBLED, "solver": RIGHT})
    failed, attempts, (run,) = repair(world)
    assert [step.predictor for step in failed.steps] == ["analyst"]
    assert verdicts(attempts) == ["repaired"]
    assert [(step.predictor, step.source) for step in run.steps] == [("analyst", "edited"), ("solver", "live")]


def test_an_agent_whose_lm_refused_wrote_nothing_to_improve_on():
    world = World({"solver": InvalidRequestError("against the policy")})
    failed, attempts, trajectories = repair(world, editable={"solver"})
    assert failed.steps[1].failure.kind == "LMInvalidRequestError"
    assert (attempts, trajectories, world.parts) == ((), (), [])


class Loop(dspy.Module):
    def __init__(self):
        super().__init__()
        self.solver = dspy.Predict("question, facts -> answer")

    def forward(self, question):
        answer = "nothing"
        for turn in range(3):
            answer = self.solver(question=question, facts=f"turn {turn}, before: {answer}").answer
        return dspy.Prediction(answer=answer)


def test_each_step_of_a_loop_is_a_try_of_its_own():
    world = World({"again solver": lambda prompt: chat_reply(answer=f"Lyon {prompt.field('facts')[:6]}")})
    _, attempts, trajectories = repair(world, program=Loop())
    assert [(attempt.position, attempt.predictor) for attempt in attempts] == [(n, "solver") for n in range(3)]
    assert [run.edited for run in trajectories] == [0, 1, 2]
    assert [[step.source for step in run.steps] for run in trajectories] == [
        ["edited", "live", "recorded"],  # the live call said Rome again, so the last one was asked the same as before
        ["recorded", "edited", "live"],
        ["recorded", "recorded", "edited"],
    ]
    assert [prompt.field("facts")[:6] for prompt in world.prompts["again solver"]] == ["turn 0", "turn 1", "turn 2"]


def test_fields_that_are_called_like_ours_keep_their_meaning():
    class Reviewer(dspy.Module):
        def __init__(self):
            super().__init__()
            self.solver = dspy.Predict("feedback: list[int], earlier_answer -> answer")

        def forward(self, numbers):
            return self.solver(feedback=numbers, earlier_answer="mine")

    example = dspy.Example(numbers=[1, 2], answer="Paris").with_inputs("numbers")
    lm = ScriptedLM(
        lambda prompt: (
            chat_reply(feedback="Think of the Seine.")
            if prompt.asks_for("feedback")
            else RIGHT
            if prompt.field("feedback_")
            else WRONG
        )
    )
    program = Reviewer()
    rollouts, failed = fail(program, lm, example)
    found = CriticAugmenter().repair(failed, example, RepairContext(program, rollouts, 1.0, frozenset({"solver"})))
    assert verdicts(found.repair.attempts) == ["repaired"]
    (again,) = [prompt for prompt in lm.requests if prompt.field("feedback_")]
    names = ("feedback", "earlier_answer", "feedback_", "earlier_answer_")
    assert [again.field(name) for name in names] == ["[1, 2]", "mine", "Think of the Seine.", "Rome"]


# What it costs, and what stops it


def test_usage_counts_every_call_once():
    world = World()
    augmenter = CriticAugmenter(max_feedback=2, max_regenerations=2)
    _, attempts, trajectories = repair(world, augmenter)
    # critique + answer + rephrasing, then answer + rephrasing; the solver's answer is not rephrased
    assert [attempt.usage.calls for attempt in attempts] == [3, 2, 3, 2, 2, 1, 2, 1]
    total = sum((attempt.usage for attempt in attempts), Usage()) + sum((run.usage for run in trajectories), Usage())
    prompts = [prompt for part in world.prompts.values() for prompt in part]
    assert total.calls == len(prompts)
    assert total.prompt_tokens == sum(len(prompt.text.split()) for prompt in prompts)


def test_usage_of_what_came_to_nothing_counts_too():
    world = World({"critique analyst": chat_reply(feedback=" "), "again solver": WRONG})
    _, attempts, _ = repair(world)
    assert [(attempt.verdict, attempt.usage.calls) for attempt in attempts] == [("unparsed", 1), ("unchanged", 2)]


@pytest.mark.parametrize("part", ["critique analyst", "again analyst", "rephrase", "solver"])
def test_an_lm_that_refuses_us_ends_everything(part):
    world = World({part: [WRONG, AuthError("no such key")] if part == "solver" else AuthError("no such key")})
    with pytest.raises(RolloutError, match=r"(?s)LMAuthError.*run the same `compile` again"):
        repair(world)
    assert world.parts[-1] == part


def test_a_metric_without_a_number_ends_everything():
    scores = iter([0.0, None])
    with pytest.raises(MetricError, match="Capital of France"):
        repair(World(), metric=lambda example, prediction: next(scores))


# The contract catches augmenters that break it


class Tampering(CriticAugmenter):
    def __init__(self, tamper):
        super().__init__()
        self.tamper = tamper

    def repair(self, failed, example, context):
        return self.tamper(super().repair(failed, example, context), failed, context)


def with_runs(**values):
    def tamper(found, failed, context):
        return RepairOutcome(found.repair, tuple(replace(run, **values) for run in found.trajectories))

    return tamper


def forgetting(found, failed, context):
    return RepairOutcome(found.repair, ())


def boasting(found, failed, context):
    attempts = tuple(replace(attempt, verdict="repaired", trajectory=None) for attempt in found.repair.attempts)
    return RepairOutcome(replace(found.repair, attempts=attempts), found.trajectories)


def meddling(found, failed, context):
    context.program.analyst.demos.append(dspy.Example(question="q", facts="f"))
    return found


@pytest.mark.parametrize(
    ("tamper", "broken"),
    [
        (with_runs(origin="rollout"), "every_run_continues_the_failed_one"),
        (with_runs(parent=None), "every_run_continues_the_failed_one"),
        (with_runs(edited=None), "every_run_continues_the_failed_one"),
        (with_runs(edited=1), "agents_that_are_not_editable_keep_what_they_wrote"),
        (with_runs(reward=0.0), "a_repaired_attempt_names_a_run_that_succeeded"),
        (forgetting, "a_repaired_attempt_names_a_run_that_succeeded"),
        (boasting, "a_repaired_attempt_names_a_run_that_succeeded"),
        (meddling, "the_program_stays_as_it_was"),
    ],
)
def test_the_contract_catches_an_augmenter_that_breaks_it(tamper, broken):
    with pytest.raises((AssertionError, KeyError)):
        getattr(AugmenterContract(), f"test_{broken}")(Tampering(tamper))


def test_the_contract_catches_runs_that_are_kept_back(tmp_path):
    with pytest.raises(LibraryError):
        AugmenterContract().test_what_it_returns_can_be_stored(Tampering(forgetting), tmp_path)
