"""Actor, judge and critic: who is paid for what, what is counted, and that a judge learns from known outcomes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace

import dspy
import pytest

from programs import actor_critic
from programs.actor_critic import Report, VerdictCurator, parse_verdict, report
from sirius_dspy import Collect, PlainAdapter, SiriuS, evaluate
from sirius_dspy.baselines import SingleAgent
from sirius_dspy.testing import ScriptedLM, ToyLM, chat_reply
from sirius_dspy.trajectory import Failure, Trajectory

CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)
TASK = actor_critic.simple_equations


@pytest.fixture(autouse=True)
def chat():
    dspy.configure(adapter=CHAT)


def example(question="Solve for z: z + 21 = 25", answer="4"):
    return dspy.Example(question=question, answer=answer).with_inputs("question")


def scripted(first="4", verdict="right", feedback="Look again.", second="4"):
    """A program whose agents say this, whatever they are asked."""
    replies = {"verdict": verdict, "feedback": feedback}

    def answer(prompt):
        for name, reply in replies.items():
            if prompt.asks_for(name):
                return reply if reply.startswith("no header") else chat_reply(**{name: reply})
        reply = first if prompt.field("feedback") is None else second
        return reply if reply.startswith("no header") else chat_reply(answer=reply)

    program = TASK.build()
    program.set_lm(ScriptedLM(answer))
    return program


def scored(program, of=None):
    case = of or example()
    prediction = program(**case.inputs())
    found = TASK.metric(case, prediction)
    return prediction, found.score, found.rewards


# One pass


def test_a_right_verdict_ends_the_run_without_critic():
    program = scripted()
    prediction, score, rewards = scored(program)
    assert prediction.toDict() == {"answer": "4", "first_answer": "4", "verdict": True, "feedback": None}
    assert (score, rewards) == (1.0, {"actor": 1.0, "judge": 1.0, "critic": 0.0, "reviser": 1.0})
    assert program.actor.lm.calls == 2


def test_a_wrong_answer_that_becomes_right_pays_judge_critic_and_reviser_only():
    program = scripted(first="5", verdict="Wrong.")
    prediction, score, rewards = scored(program)
    assert (prediction.answer, prediction.first_answer, prediction.feedback) == ("4", "5", "Look again.")
    assert (score, rewards) == (1.0, {"actor": 0.0, "judge": 1.0, "critic": 1.0, "reviser": 1.0})
    asked = program.actor.lm.requests
    assert [prompt.field("proposed_answer") for prompt in asked] == [None, "5", "5", None]
    assert (asked[3].field("earlier_answer"), asked[3].field("feedback")) == ("5", "Look again.")


@pytest.mark.parametrize(
    ("said", "score", "rewards"),
    [
        # a right answer that stays right pays no critic, and the judge was wrong
        ({"verdict": "wrong"}, 1.0, {"actor": 1.0, "judge": 0.0, "critic": 0.0, "reviser": 1.0}),
        ({"verdict": "wrong", "second": "9"}, 0.0, {"actor": 1.0, "judge": 0.0, "critic": 0.0, "reviser": 0.0}),
        ({"first": "5"}, 0.0, {"actor": 0.0, "judge": 0.0, "critic": 0.0, "reviser": 0.0}),
        ({"first": "5", "verdict": "wrong", "second": "6"}, 0.0, {"actor": 0, "judge": 1.0, "critic": 0, "reviser": 0}),
        # a verdict that does not parse is neither right nor wrong
        ({"verdict": "maybe"}, 1.0, {"actor": 1.0, "judge": 0.0, "critic": 0.0, "reviser": 1.0}),
        ({"first": "5", "verdict": "maybe"}, 0.0, {"actor": 0.0, "judge": 0.0, "critic": 0.0, "reviser": 0.0}),
    ],
)
def test_each_agent_is_paid_for_its_own_part(said, score, rewards):
    assert scored(scripted(**said))[1:] == (score, rewards)


@pytest.mark.parametrize("verdict", ["maybe", "no header at all", "right or wrong"])
def test_a_verdict_that_does_not_parse_goes_to_no_critic(verdict):
    program = scripted(first="5", verdict=verdict)
    prediction, *_ = scored(program)
    assert (prediction.verdict, prediction.answer, program.actor.lm.calls) == (None, "5", 2)


@pytest.mark.parametrize("said", [{"feedback": "no header at all"}, {"second": "no header at all"}])
def test_the_first_answer_stands_where_advice_or_second_answer_do_not_parse(said):
    prediction, score, _ = scored(scripted(verdict="wrong", **said))
    assert (prediction.answer, score) == ("4", 1.0)


def test_async_is_the_same():
    for said in ({}, {"first": "5", "verdict": "wrong"}, {"verdict": "no header"}):
        program = scripted(**said)
        assert asyncio.run(program.acall(**example().inputs())).toDict() == scored(program)[0].toDict()


def test_nobody_sees_the_gold_answer():
    program = scripted(first="5", verdict="wrong", second="6")
    program(**example(answer="777").inputs())
    assert not any("777" in prompt.text for prompt in program.actor.lm.requests)


def test_self_correction_has_no_judge_and_always_a_second_answer():
    program = TASK.build(self_correct=True)
    program.set_lm(scripted(first="5").actor.lm)
    prediction, score, _ = scored(program)
    assert (prediction.verdict, prediction.feedback, prediction.answer, score) == (None, "Look again.", "4", 1.0)
    assert [name for name, _ in program.named_predictors()] == ["actor", "critic", "reviser"]
    assert asyncio.run(program.acall(**example().inputs())).toDict() == prediction.toDict()


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("right", True),
        ("**Right.**", True),
        ("Verdict: correct", True),
        ("True, since 4 + 21 = 25.", True),
        ("wrong", False),
        ("incorrect!", False),
        ("FALSE", False),
        ("It was wrong of me.\nVerdict: right", True),
        ("right or wrong", None),
        ("the answer is right", None),
        ("not wrong", None),
        ("yes", None),
        ("", None),
        (None, None),
    ],
)
def test_verdicts_are_anchored(text, verdict):
    assert parse_verdict(text) is verdict


# The report


def run_of(first, verdict, final, failure=None):
    prediction = None if failure else {"answer": "", "first_answer": "", "verdict": verdict, "feedback": None}
    rewards = {} if failure else {"actor": float(first)}
    return Trajectory("key", (), prediction, float(final), rewards, failure=failure)


def test_the_report_equals_a_count_by_hand():
    found = report(
        [
            *[run_of(True, True, True)] * 3,
            run_of(True, False, True),
            run_of(True, False, False),
            run_of(False, True, False),
            *[run_of(False, False, True)] * 2,
            run_of(False, False, False),
            run_of(True, None, True),
            run_of(False, None, False),
            run_of(False, None, False, failure=Failure("AdapterParseError", "no answer")),
        ]
    )
    assert found == Report(
        total=12,
        right_judged_right=3,
        right_judged_wrong=2,
        wrong_judged_right=1,
        wrong_judged_wrong=3,
        right_unparsed=1,
        wrong_unparsed=1,
        failed=1,
        wrong_to_right=2,
        right_to_wrong=1,
        overall_right=7,
    )
    assert (found.tp_accuracy, found.overall_accuracy) == (3 / 12, 7 / 12)
    assert found.judge_rows == {"right": 3, "wrong": 3}
    low, high = found.interval("right_judged_right")
    assert low < 3 / 12 < high


def test_the_report_reads_what_evaluate_ran():
    cases = [example(f"Solve for z: z + {number} = 5", str(5 - number)) for number in range(4)]
    program = scripted(first="4", verdict="wrong", second="3")
    found = report(evaluate(program, cases, TASK.metric).trajectories)
    assert found == Report(
        total=4, right_judged_wrong=1, wrong_judged_wrong=3, wrong_to_right=1, right_to_wrong=1, overall_right=1
    )


def test_a_run_without_a_first_answer_is_counted_apart():
    found = report(evaluate(scripted(first="no header at all"), [example()], TASK.metric).trajectories)
    assert found == Report(total=1, failed=1)


# Learning


def naive(prompt):
    """An actor that is right on small numbers, a judge that believes everything, a critic that helps with 30."""
    number = int(prompt.text.rpartition("z + ")[2].split()[0])
    if prompt.asks_for("verdict"):
        return chat_reply(verdict="right" if prompt.seed is None or prompt.seed % 2 else "wrong")
    if prompt.asks_for("feedback"):
        return chat_reply(feedback="take it away" if number == 30 else "think")
    if prompt.field("feedback") == "take it away" or (prompt.field("feedback") is None and number < 25):
        return chat_reply(answer=str(50 - number))
    return chat_reply(answer="99")


def test_the_judge_learns_from_known_outcomes_through_a_compile(tmp_path):
    cases = [example(f"Solve for z: z + {number} = 50", str(50 - number)) for number in range(21, 31)]
    program = TASK.build()
    program.set_lm(ToyLM(skill=naive, temperature=1.0))
    before = report(evaluate(program, cases, TASK.metric).trajectories)
    optimizer = SiriuS(
        TASK.metric, augmenter=None, iterations=1, collect=Collect(samples=12), gate=None, run_dir=tmp_path
    )
    compiled = optimizer.compile(program, trainset=cases, valset=cases)
    found = report(evaluate(compiled, cases, TASK.metric).trajectories)
    assert (found.right_judged_right, found.right_judged_wrong) == (4, 0)
    assert (found.wrong_judged_right, found.wrong_judged_wrong) == (0, 6)
    assert (found.wrong_to_right, found.overall_right) == (1, 5)
    assert before.right_judged_wrong + before.wrong_judged_right > 0
    rows = {
        agent: [json.loads(line)["messages"] for line in path.read_text().splitlines()]
        for agent in ("actor", "judge", "critic", "reviser")
        if (path := tmp_path / "training" / "iteration-1" / f"{agent}.jsonl").exists()
    }
    # wrong first answers are in no row, the critic learns from number 30 alone, and no row holds two answers
    assert not any("99" in messages[-1]["content"] for agent in ("actor", "reviser") for messages in rows[agent])
    assert {("z + 30 = 50" in messages[-2]["content"]) for messages in rows["critic"]} == {True}
    assert {"right" in messages[-1]["content"] for messages in rows["judge"]} == {True, False}


def test_the_actor_alone_is_trained_under_the_same_metric(tmp_path):
    program = TASK.build()
    program.set_lm(ToyLM(skill=naive))
    cases = [example(f"Solve for z: z + {number} = 50", str(50 - number)) for number in (21, 22, 29)]
    method = SingleAgent(TASK.build(single=True), SiriuS(TASK.metric, augmenter=None, iterations=1, run_dir=tmp_path))
    alone = method.compile(program, trainset=cases, valset=cases)
    assert evaluate(alone, cases, TASK.metric).rewards == (1.0, 1.0, 0.0)


def test_a_judge_gets_equally_many_verdicts_of_either_kind():
    sets = curated(VerdictCurator(), right=3, wrong=9)
    completions = Counter(row.messages[-1]["content"] for row in sets["judge"].rows)
    assert sorted(completions.values()) == [3, 3]
    assert sets["judge"].dropped == {"out of balance": 6}
    assert len(sets["actor"].rows) == 3  # only the judge's rows are balanced


def test_the_cap_comes_after_the_balance():
    sets = curated(VerdictCurator(max_rows=5), right=3, wrong=20)
    assert len(sets["judge"].rows) == 5
    assert max(Counter(row.messages[-1]["content"] for row in sets["judge"].rows).values()) == 3


def test_a_judge_that_saw_one_kind_of_verdict_only_learns_nothing():
    sets = curated(VerdictCurator(), right=0, wrong=5)
    assert sets["judge"].rows == ()


def curated(curator, right, wrong):
    """What a judge that is always right leaves, with an actor that is right on some."""

    def play(prompt):
        number = int(prompt.text.rpartition("z + ")[2].split()[0])
        if prompt.asks_for("verdict"):
            return chat_reply(verdict="right" if number <= right else "wrong")
        if prompt.asks_for("feedback"):
            return chat_reply(feedback="think")
        return chat_reply(answer=str(50 - number) if number <= right else "99")

    program = TASK.build()
    program.set_lm(ScriptedLM(play))
    cases = [example(f"Solve for z: z + {number} = 50", str(50 - number)) for number in range(1, right + wrong + 1)]
    found = evaluate(program, cases, TASK.metric).trajectories
    agents = {name: [name] for name, _ in program.named_predictors()}
    return curator.curate(program, found, agents, threshold=1.0)


# The tasks


def test_demonstrations_fit_the_signatures_and_are_in_no_split():
    program, shown = TASK.build(), TASK.demonstrations()
    for name, predictor in program.named_predictors():
        assert len(shown[name]) == 4
        for demo in shown[name]:
            assert set(demo.inputs().keys()) == set(predictor.signature.input_fields)
            assert set(demo.labels().keys()) == set(predictor.signature.output_fields)
    assert all(TASK.answer_metric(demo, demo) == 1.0 for demo in shown["actor"] + shown["reviser"])
    assert {demo.verdict for demo in shown["judge"]} == {"right", "wrong"}
    questions = {found.question for split in ("train", "test") for found in TASK.examples(split, 200)}
    assert not questions & {demo.question for demo in shown["actor"]}
    assert list(TASK.demonstrations(single=True)) == [name for name, _ in TASK.build(single=True).named_predictors()]


def test_equations_run_end_to_end_with_short_prompts():
    dspy.configure(adapter=PlainAdapter())
    cases = TASK.examples("test", 5)
    gold = {case.question: case.answer for case in cases}
    program = TASK.build()
    program.set_lm(ScriptedLM(lambda prompt: "right" if "proposed_answer" in prompt.user else gold[prompt.user[10:]]))
    found = report(evaluate(program, cases, TASK.metric).trajectories)
    assert found == Report(total=5, right_judged_right=5, overall_right=5)
    assert 0 < TASK.majority_baseline(cases) <= 1


def test_pubmedqa_agents_see_context_and_question():
    task = actor_critic.pubmedqa
    case = dspy.Example(context="We gave pills.", question="Do they work?", answer="yes")
    case = case.with_inputs("context", "question")
    program = task.build()
    program.set_lm(
        ScriptedLM(
            [chat_reply(answer="no"), chat_reply(verdict="wrong"), chat_reply(feedback="f"), chat_reply(answer="Yes.")]
        )
    )
    found = task.metric(case, program(**case.inputs()))
    assert (found.score, found.rewards["critic"]) == (1.0, 1.0)
    for prompt in program.actor.lm.requests:
        assert (prompt.field("context"), prompt.field("question")) == ("We gave pills.", "Do they work?")
    assert task.demonstrations() == task.demonstrations(single=True) == {}


def test_tasks_are_values_that_can_be_varied():
    sterner = replace(TASK, instructions="Solve the equation with care.")
    assert sterner.build().actor.signature.instructions == "Solve the equation with care."
    assert TASK.metric == sterner.metric
