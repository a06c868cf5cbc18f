"""Teams of other sizes; the data and the paper's program are tested in test_programs.py."""

import asyncio
import json
from collections import Counter

import dspy
import pytest

from metrics.yes_no_maybe import parse, report
from programs import pubmedqa
from programs.pubmedqa import AnswerCurator
from sirius_dspy import evaluate
from sirius_dspy.demo.majority import majority_baseline
from sirius_dspy.errors import DatasetError, GraphError
from sirius_dspy.running.record import record
from sirius_dspy.testing import ScriptedLM, chat_reply

SECRET = "the conclusion that nobody may see"
EXAMPLE = dspy.Example(context="We gave pills. Ten of ten slept.", question="Do they help?", answer="yes").with_inputs(
    "context", "question"
)


pytestmark = pytest.mark.usefixtures("chat_adapter")


def replies(prompt):
    if prompt.asks_for("notes"):
        return chat_reply(notes=f"notes on {prompt.system.count('sure the findings')}")
    return chat_reply(summary="They slept.") if prompt.asks_for("summary") else chat_reply(answer="Yes.")


@pytest.mark.parametrize("num_agents", range(1, 6))
@pytest.mark.parametrize("sees_question", [False, True])
def test_teams_of_one_to_five_run_end_to_end(num_agents, sees_question):
    program = pubmedqa.build(sees_question, num_agents)
    lm = ScriptedLM(replies)
    program.set_lm(lm)
    names = [name for name, _ in program.named_predictors()]
    assert len(names) == num_agents
    assert names[-1] == "solver"
    assert pubmedqa.metric(EXAMPLE, program(**EXAMPLE.inputs())) == 1.0
    assert pubmedqa.metric(EXAMPLE, asyncio.run(program.acall(**EXAMPLE.inputs()))) == 1.0
    analysts = [prompt for prompt in lm.requests if not prompt.asks_for("answer")]
    assert len(analysts) == 2 * (num_agents - 1)
    assert {prompt.field("question") for prompt in analysts} <= {EXAMPLE.question if sees_question else None}
    assert {prompt.field("context") for prompt in analysts} <= {EXAMPLE.context}


@pytest.mark.parametrize("num_agents", range(2, 6))
def test_the_solver_of_a_team_knows_the_notes_only(num_agents):
    program = pubmedqa.build(num_agents=num_agents)
    program.set_lm(ScriptedLM(replies))
    recording = record(program, EXAMPLE.inputs())
    solver = next(step for step in recording.steps if step.predictor == "solver")
    assert "context" not in solver.inputs
    assert solver.inputs["question"] == EXAMPLE.question
    assert len(solver.inputs) == num_agents


@pytest.mark.parametrize("num_agents", [3, 4, 5])
def test_analysts_are_specialised_and_work_side_by_side(num_agents):
    program = pubmedqa.build(num_agents=num_agents)
    assert [len(stage) for stage in program.stages] == [num_agents - 1, 1]
    instructions = [predictor.signature.instructions for _, predictor in program.named_predictors()]
    assert len(set(instructions)) == num_agents
    for aspect in ("why the study was made", "who was studied", "what was found", "how sure the findings are"):
        assert sum(aspect in text for text in instructions) == 1


@pytest.mark.parametrize("num_agents", [0, 6, -1])
def test_other_sizes_are_refused(num_agents):
    with pytest.raises(GraphError, match="expected a number from 1 to 5"):
        pubmedqa.build(num_agents=num_agents)


def test_always_yes_has_the_share_of_yes_and_no_other_recall(tmp_path):
    labels = ["yes"] * 11 + ["no"] * 7 + ["maybe"] * 2
    records = {
        str(100 + number): {
            "QUESTION": f"Does treatment {number} work?",
            "CONTEXTS": ["We counted."],
            "reasoning_required_pred": SECRET,
            "reasoning_free_pred": SECRET,
            "final_decision": label,
            "LONG_ANSWER": SECRET,
        }
        for number, label in enumerate(labels)
    }
    (tmp_path / "ori_pqal.json").write_text(json.dumps(records))
    (tmp_path / "test_ground_truth.json").write_text(json.dumps(dict.fromkeys(list(records), "yes")))
    test = pubmedqa.examples("test", path=tmp_path / "ori_pqal.json")
    scores = [pubmedqa.metric(e, dspy.Prediction(answer="Yes.")) for e in test]
    assert sum(scores) / len(scores) == majority_baseline(test) == 0.55
    assert [e.answer for e, score in zip(test, scores, strict=True) if score == 1.0] == ["yes"] * 11
    assert Counter(e.answer for e in test) == {"yes": 11, "no": 7, "maybe": 2}
    assert SECRET not in str([e.toDict() for e in test])


def test_unparseable_replies_can_be_counted_apart():
    replies = ["Yes.", "The diagnosis is not known", "no", ""]
    assert [parse(reply) for reply in replies] == ["yes", None, "no", None]


def test_a_record_without_a_gold_answer_is_named(tmp_path):
    record = {"QUESTION": "Does it work?", "CONTEXTS": ["We counted."], "final_decision": "yes"}
    (tmp_path / "ori_pqal.json").write_text(json.dumps({"1": record, "22": {**record, "final_decision": None}}))
    (tmp_path / "test_ground_truth.json").write_text(json.dumps({"1": "yes"}))
    with pytest.raises(DatasetError, match=r"'22' has the label None"):
        pubmedqa.examples("train", path=tmp_path / "ori_pqal.json")
    (tmp_path / "ori_pqal.json").write_text(json.dumps({"1": record, "22": {"QUESTION": "?", "CONTEXTS": []}}))
    with pytest.raises(DatasetError, match=r"'22'.*final_decision"):
        pubmedqa.examples("train", path=tmp_path / "ori_pqal.json")


def test_a_report_reads_labels_as_the_metric_does_and_counts_failed_runs_as_wrong():
    examples = [
        dspy.Example(context="c", question=f"q{n}", answer=gold).with_inputs("context", "question")
        for n, gold in enumerate(["yes", "yes", "no", "maybe"])
    ]
    answers = {"q0": "Yes, they do.", "q1": "No.", "q2": "no"}

    def reply(prompt):
        if prompt.asks_for("summary"):
            return chat_reply(summary="Text.")
        answer = answers.get(prompt.field("question"))
        return "I cannot say." if answer is None else chat_reply(answer=answer)

    program = pubmedqa.build()
    program.set_lm(ScriptedLM(reply))
    runs = evaluate(program, examples, pubmedqa.metric).trajectories
    found = report(runs, examples)
    assert found.recall == {"yes": 0.5, "no": 1.0, "maybe": 0.0}
    assert found.balanced_accuracy == pytest.approx(0.5)


def test_the_answers_of_training_rows_are_balanced_by_their_label():
    texts = ["Yes.", "yes", "Yes, they do.", "no", "No, not at all."]
    assert [AnswerCurator().value_of(text) for text in texts] == ["yes"] * 3 + ["no"] * 2
