"""Training sets: whose rows, which prompt, and what is left out. The runs are real ones, recorded from programs."""

import asyncio
import json
import random
import time
from dataclasses import replace
from typing import Literal

import dspy
import pydantic
import pytest
from dspy.clients.utils_finetune import find_data_error_chat
from pydantic import TypeAdapter

from sirius_dspy import Curator, PlainAdapter
from sirius_dspy.errors import UnpreparedProgramError
from sirius_dspy.plain import from_plain
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, chat_reply
from sirius_dspy.training.curate import Appraisal
from sirius_dspy.training.prompts import PromptProbe, check_adapter, training_messages
from sirius_dspy.trajectory import Step, Trajectory

CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)
ADAPTERS = [CHAT, dspy.XMLAdapter(use_json_adapter_fallback=False), PlainAdapter()]


@pytest.fixture(autouse=True)
def adapter():
    dspy.configure(adapter=CHAT)


def by_name(adapter):
    return type(adapter).__name__


class Author:
    """An LM that writes fixed values for the output fields that a prompt asks for, in the active adapter's way."""

    def __init__(self, signatures, **values):
        self.signatures = signatures
        self.values = values
        self.lm = ScriptedLM(self)

    def __call__(self, prompt):
        signature = next(s for s in self.signatures if s.instructions in prompt.system)
        outputs = {name: self.values[name] for name in signature.output_fields}
        outputs = {name: value(prompt) if callable(value) else value for name, value in outputs.items()}
        return dspy.settings.adapter.base.format_assistant_message_content(signature, outputs)


def author(program, **values):
    """Give the program an LM that writes these values."""
    written = Author([predictor.signature for _, predictor in program.named_predictors()], **values)
    program.set_lm(written.lm)
    return program


def runs(program, *inputs, metric=lambda example, prediction: 1.0, **settings):
    """One recorded run per set of inputs, as it would come back from the library."""
    examples = [dspy.Example(**values).with_inputs(*values) for values in inputs]
    rollouts = Rollouts(metric, num_threads=1, **settings)
    found = [rollouts.run_one(program, Task(example)) for example in examples]
    assert all(run.failure is None for run in found), found[0].failure
    return [Trajectory.from_dict(json.loads(json.dumps(run.to_dict()))) for run in found]


def each(program):
    """Every predictor an agent of its own."""
    return {name: [name] for name, _ in program.named_predictors()}


def curate(program, trajectories, agents=None, threshold=1.0, curator=None, **settings):
    return (curator or Curator()).curate(
        program, trajectories, agents or each(program), threshold=threshold, **settings
    )


def sizes(sets):
    return {agent: len(found.rows) for agent, found in sets.items()}


class Team(dspy.Module):
    def __init__(self):
        super().__init__()
        self.analyst = dspy.Predict("question -> facts")
        self.solver = dspy.ChainOfThought("question, facts -> answer")

    def forward(self, question):
        return self.solver(question=question, facts=self.analyst(question=question).facts)


def team():
    return author(Team(), facts="Some\n\nfacts: two.", reasoning="As <b> & so.", answer="4")


# The prompt of a row is the prompt of inference


def asked(lm):
    """What the LM was really asked, as chat messages."""
    return [
        [{"role": "system", "content": prompt.system}, *({"role": r, "content": t} for r, t in prompt.messages)]
        for prompt in lm.requests
    ]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=by_name)
def test_a_row_is_what_the_program_really_sends_and_what_it_answered(adapter):
    dspy.configure(adapter=adapter)
    program = team()
    (run,) = runs(program, {"question": "2+2? [[ ## x ## ]] <y> name: z"})
    first, second = asked(program.analyst.lm)
    sets = curate(program, [run])
    ((analyst,), (solver,)) = sets["analyst"].rows, sets["solver.predict"].rows
    assert list(analyst.messages[:-1]) == first
    assert list(solver.messages[:-1]) == second
    assert analyst.messages[-1]["role"] == solver.messages[-1]["role"] == "assistant"
    signature = program.solver.predict.signature
    assert adapter.parse(signature, solver.messages[-1]["content"]) == {"reasoning": "As <b> & so.", "answer": "4"}
    assert (analyst.trajectory, analyst.example_key, analyst.predictor) == (run.id, run.example_key, "analyst")


@pytest.mark.parametrize("adapter", ADAPTERS, ids=by_name)
def test_rows_have_no_demonstrations_though_the_runs_and_the_program_had(adapter):
    dspy.configure(adapter=adapter)
    program = team()
    collected = runs(program, {"question": "2+2?"}, demos={"analyst": [dspy.Example(question="shown", facts="f")]})
    assert collected[0].steps[0].num_demos == 1
    assert "shown" in program.analyst.lm.requests[0].text
    program.analyst.demos = [dspy.Example(question="shown", facts="f")]
    ((row,), _) = (found.rows for found in curate(program, collected).values())
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant"]
    assert "shown" not in str(row.messages)
    assert len(program.analyst.demos) == 1


def test_making_rows_asks_no_lm_and_leaves_no_trace():
    program = team()
    collected = runs(program, {"question": "2+2?"})
    calls, state, trace = program.analyst.lm.calls, program.dump_state(), []
    with dspy.context(trace=trace), dspy.track_usage() as tracker:
        curate(program, collected)
    assert program.analyst.lm.calls == calls
    assert (program.dump_state(), trace, tracker.usage_data) == (state, [], {})
    assert not program.analyst.lm.history
    assert not program.analyst.history


def test_the_prompt_of_a_row_is_what_was_sent_whatever_the_adapter_writes_for_training():
    class Moody(dspy.ChatAdapter):
        def format_finetune_data(self, signature, demos, inputs, outputs):
            row = super().format_finetune_data(signature, demos, inputs, outputs)
            row["messages"][0]["content"] += " And be kind."
            return row

    program = team()
    with dspy.context(adapter=Moody(use_json_adapter_fallback=False)):
        sets = curate(program, runs(program, {"question": "2+2?"}))
    (row,) = sets["analyst"].rows
    (asked, _) = program.analyst.lm.requests
    assert [message["content"] for message in row.messages[:-1]] == [asked.system, asked.user]


def test_predictor_settings_that_change_nothing_in_the_prompt_are_no_hindrance():
    class Several(dspy.Module):
        def __init__(self):
            super().__init__()
            self.judge = dspy.Predict("question -> verdict", n=3, temperature=1.0, max_tokens=9)

        def forward(self, question):
            return self.judge(question=question)

    program = author(Several(), verdict="fine")
    assert sizes(curate(program, runs(program, {"question": "?"}))) == {"judge": 1}


# Values of every type


class Fact(pydantic.BaseModel):
    text: str
    weight: float = 1.0


class Typed(dspy.Signature):
    """Sort."""

    numbers: list[int] = dspy.InputField()
    mode: Literal["up", "down"] = dspy.InputField()
    fact: Fact = dspy.InputField()
    maybe: str | None = dspy.InputField()
    sorted_numbers: list[int] = dspy.OutputField()
    verdict: Literal["fine", "odd"] = dspy.OutputField()
    fine: bool = dspy.OutputField()
    score: float = dspy.OutputField()
    made: Fact = dspy.OutputField()
    by_name: dict[str, int] = dspy.OutputField()


class Sorting(dspy.Module):
    def __init__(self):
        super().__init__()
        self.sort = dspy.Predict(Typed)

    def forward(self, numbers, mode, fact, maybe):
        return self.sort(numbers=numbers, mode=mode, fact=fact, maybe=maybe)


TYPED = {
    "sorted_numbers": [1, 2, 3],
    "verdict": "odd",
    "fine": True,
    "score": 0.5,
    "made": Fact(text="a <b> & c", weight=2.0),
    "by_name": {"x": 1},
}


@pytest.mark.parametrize("adapter", ADAPTERS, ids=by_name)
def test_typed_fields_come_back_from_disk_and_round_trip(adapter):
    dspy.configure(adapter=adapter)
    program = author(Sorting(), **TYPED)
    collected = runs(program, {"numbers": [3, 1], "mode": "up", "fact": Fact(text="f"), "maybe": None})
    (row,) = curate(program, collected)["sort"].rows
    assert list(row.messages[:-1]) == asked(program.sort.lm)[0]
    assert adapter.parse(Typed, row.messages[-1]["content"]) == TYPED


class Ticket(pydantic.BaseModel):
    """Parsed from texts that leave something out, or that have names which Python does not allow."""

    sender: str = pydantic.Field(alias="from")
    urgent: bool = False
    _opened: float = pydantic.PrivateAttr(default_factory=time.perf_counter)


class Quote(dspy.Type):
    """Looks in prompts otherwise than in replies."""

    text: str

    def format(self):
        return f"<<{self.text}>>"


@pytest.mark.parametrize(
    ("annotation", "written"),
    [
        (Quote, '{"text": "a"}'),
        (list[Quote], '[{"text": "a"}]'),
        (Fact, '{"text": "left out"}'),
        (list[Fact], '[{"text": "a"}, {"text": "b", "weight": 2.0}]'),
        (Ticket, '{"from": "Ann"}'),
        (dict[str, Ticket], '{"first": {"from": "Ann", "urgent": true}}'),
    ],
    ids=["own look", "own looks", "default", "list", "alias", "dict"],
)
@pytest.mark.parametrize("adapter", [CHAT, PlainAdapter()], ids=by_name)
def test_models_that_dspy_reads_and_does_not_write_in_the_same_words_are_taught(adapter, annotation, written):
    dspy.configure(adapter=adapter)
    fields = {"question": (str, dspy.InputField()), "value": (annotation, dspy.OutputField())}
    program = dspy.Predict(dspy.Signature(fields, "Answer."))
    program.set_lm(ScriptedLM(lambda prompt: written if adapter is not CHAT else chat_reply(value=written)))
    found = curate(program, collected := runs(program, {"question": "?"}))["self"]
    assert len(found.rows) == 1, found.dropped
    taught = adapter.parse(program.signature, found.rows[0].messages[-1]["content"])["value"]
    recorded = from_plain(collected[0].steps[0].outputs["value"], annotation)
    assert TypeAdapter(annotation).dump_json(taught) == TypeAdapter(annotation).dump_json(recorded)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=by_name)
def test_a_conversation_in_the_inputs_is_part_of_the_prompt(adapter):
    class Chat(dspy.Module):
        def __init__(self):
            super().__init__()
            self.reply = dspy.Predict(dspy.Signature("history: dspy.History, question -> answer", "Chat."))

        def forward(self, history, question):
            return self.reply(history=history, question=question)

    dspy.configure(adapter=adapter)
    program = author(Chat(), answer="fine")
    history = dspy.History(messages=[{"question": "hello?", "answer": "hi"}])
    collected = runs(program, {"history": history, "question": "how are you?"})
    (row,) = curate(program, collected)["reply"].rows
    assert list(row.messages[:-1]) == asked(program.reply.lm)[0]
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant", "user", "assistant"]


# Whose rows


class Crowd(dspy.Module):
    """A loop, a branch, and two predictors with one signature."""

    def __init__(self):
        super().__init__()
        self.twins = [dspy.Predict("question -> facts"), dspy.Predict("question -> facts")]
        self.left, self.right = dspy.Predict("facts -> answer"), dspy.Predict("facts -> answer")

    def forward(self, question):
        facts = question
        for turn in range(3):
            facts = self.twins[turn % 2](question=facts).facts
        return self.left(facts=facts) if question == "left" else self.right(facts=facts)


def test_rows_belong_to_predictors_by_name():
    program = author(Crowd(), facts=lambda prompt: prompt.field("question") + "!", answer="4")
    left, right, other = runs(program, {"question": "left"}, {"question": "right"}, {"question": "other"})
    sets = curate(program, [left, right, other])
    assert sizes(sets) == {"twins[0]": 6, "twins[1]": 3, "left": 1, "right": 2}
    for agent, found in sets.items():
        assert {row.predictor for row in found.rows} == {agent}
    assert {row.trajectory for row in sets["left"].rows} == {left.id}
    assert {row.trajectory for row in sets["right"].rows} == {right.id, other.id}
    asked_of_second = {row.messages[1]["content"].split("\n")[1] for row in sets["twins[1]"].rows}
    assert asked_of_second == {"left!", "right!", "other!"}


def test_a_group_gets_the_rows_of_all_its_predictors():
    program = author(Crowd(), facts=lambda prompt: prompt.field("question") + "!", answer="4")
    agents = {"both": ["twins[0]", "twins[1]"], "right": ["right"]}
    sets = curate(program, runs(program, {"question": "other"}), agents)
    assert sizes(sets) == {"both": 3, "right": 1}
    assert {row.predictor for row in sets["both"].rows} == {"twins[0]", "twins[1]"}


@pytest.mark.filterwarnings("ignore:.* that is no attribute of the program:UserWarning")  # our own: what is tested
def test_predictors_of_no_agent_and_those_outside_the_program_teach_nobody():
    class Improvising(Team):
        def forward(self, question):
            made_up = dspy.Predict("question -> facts")
            return self.solver(question=question, facts=made_up(question=question).facts)

    program = team()
    program.__class__ = Improvising
    with dspy.context(lm=program.analyst.lm):
        collected = runs(program, {"question": "2+2?"})
    assert [step.predictor for step in collected[0].steps] == ["<Predict>", "solver.predict"]
    assert sizes(curate(program, collected)) == {"analyst": 0, "solver.predict": 1}
    assert sizes(curate(program, collected, {"analyst": ["analyst"]})) == {"analyst": 0}


def test_only_runs_that_reach_the_threshold_teach():
    program = team()
    rewards = iter([1.0, 0.5, 0.49, 0.0])
    inputs = [{"question": f"q{n}"} for n in range(4)]
    collected = runs(program, *inputs, metric=lambda example, prediction: next(rewards))
    sets = curate(program, collected, threshold=0.5)
    assert {row.trajectory for row in sets["analyst"].rows} == {run.id for run in collected[:2]}
    assert sets["analyst"].dropped == {}  # a failed run is no loss


def test_an_agent_with_a_reward_of_its_own_is_judged_by_it():
    program = team()
    (run,) = runs(
        program,
        {"question": "2+2?"},
        metric=lambda example, prediction: dspy.Prediction(score=0.0, rewards={"analyst": 1.0, "pair": 1.0}),
    )
    assert sizes(curate(program, [run])) == {"analyst": 1, "solver.predict": 0}
    assert sizes(curate(program, [run], {"pair": ["analyst", "solver.predict"]})) == {"pair": 2}
    sides = replace(run, reward=0.0, rewards={"analyst": 1.0, "solver.predict": 0.0})
    assert sizes(curate(program, [sides], {"pair": ["analyst", "solver.predict"]})) == {"pair": 1}
    loser = replace(run, reward=1.0, rewards={"analyst": 0.0})
    assert sizes(curate(program, [loser])) == {"analyst": 0, "solver.predict": 1}


# What is left out


@pytest.mark.parametrize(
    ("adapter", "values"),
    [
        (CHAT, {"facts": "See:\n[[ ## answer ## ]]\n5"}),
        (CHAT, {"facts": " spaces around "}),
        (PlainAdapter(), {"reasoning": "So\nanswer: 5"}),
        (PlainAdapter(), {"reasoning": "So\n**Answer:** 5"}),
        (dspy.XMLAdapter(use_json_adapter_fallback=False), {"facts": "</facts> <facts>"}),
    ],
    ids=["marker", "spaces", "line", "bold line", "tags"],
)
def test_what_would_not_parse_back_to_what_was_recorded_is_dropped_and_counted(adapter, values):
    program = team()
    (run,) = runs(program, {"question": "2+2?"})
    spoilt = replace(
        run,
        steps=tuple(
            replace(step, outputs={n: values.get(n, v) for n, v in step.outputs.items()}) for step in run.steps
        ),
    )
    agent = "analyst" if "facts" in values else "solver.predict"
    with dspy.context(adapter=adapter):
        before, after = curate(program, [run])[agent], curate(program, [spoilt])[agent]
    if by_name(adapter) == "XMLAdapter":  # escapes its tags, so nothing is lost
        assert [len(found.rows) for found in (before, after)] == [1, 1]
    else:
        assert (len(before.rows), before.dropped) == (1, {})
        assert (len(after.rows), after.dropped) == (0, {"does not parse back": 1})


def edited(run, position, **values):
    steps = list(run.steps)
    steps[position] = replace(steps[position], **values)
    return replace(run, steps=tuple(steps))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"outputs": None}, "the call failed"),
        ({"outputs": {"other": "x"}}, "outputs of another signature"),
        ({"outputs": {"facts": "x", "more": "y"}}, "outputs of another signature"),
        ({"inputs": {"question": "?", "hint_": "Be better."}}, "has a hint of dspy.Refine"),
    ],
    ids=str,
)
def test_steps_that_are_no_examples_are_counted_by_reason(values, reason):
    program = team()
    (run,) = runs(program, {"question": "2+2?"})
    found = curate(program, [edited(run, 0, **values)])["analyst"]
    assert (found.rows, found.dropped) == ((), {reason: 1})


def test_what_refine_says_to_its_module_is_not_taught():
    class Refining(dspy.Module):
        def __init__(self):
            super().__init__()
            self.refined = dspy.Refine(
                dspy.Predict("question -> answer"),
                N=2,
                reward_fn=lambda args, prediction: float("OK" in prediction.answer),
                threshold=1.0,
            )

        def forward(self, question):
            return self.refined(question=question)

    def refine(prompt):
        if prompt.asks_for("advice"):
            return chat_reply(discussion="d", advice='{"refined.module": "Be OK."}')
        return chat_reply(answer="OK" if prompt.field("hint_") else "bad")

    program = Refining()
    dspy.configure(lm=ScriptedLM(refine))
    program.set_lm(dspy.settings.lm)
    (run,) = runs(program, {"question": "?"})
    (found,) = curate(program, [run]).values()
    assert [step.predictor for step in run.steps] == ["refined.module", "<Predict>", "refined.module"]
    assert found.dropped == {"has a hint of dspy.Refine": 1}
    assert ["hint" in str(row.messages) for row in found.rows] == [False]


def test_a_repair_teaches_the_edited_step_and_later_ones():
    program = team()
    (run,) = runs(program, {"question": "2+2?"})
    repaired = [replace(run, origin="repair", parent="p", edited=position) for position in (0, 1)]
    assert [sizes(curate(program, [found])) for found in repaired] == [
        {"analyst": 1, "solver.predict": 1},
        {"analyst": 0, "solver.predict": 1},
    ]


def test_equal_rows_collapse_and_are_counted():
    program = team()
    (run,) = runs(program, {"question": "2+2?"})
    again = [replace(run, sample=number) for number in range(3)]
    found = curate(program, again)["analyst"]
    assert (len(found.rows), found.dropped) == (1, {"duplicate": 2})


# Caps and order


def samples(num_examples, num_samples):
    program = author(Team(), facts=lambda prompt: f"facts {prompt.seed}", reasoning="r", answer="4")
    rollouts = Rollouts(lambda example, prediction: 1.0, num_threads=4)
    examples = [dspy.Example(question=f"q{n}").with_inputs("question") for n in range(num_examples)]
    tasks = [Task(example, sample) for example in examples for sample in range(num_samples)]
    return program, [run for _, run in rollouts.run_all(program, tasks)]


def test_an_easy_example_does_not_crowd_out_the_others():
    program, collected = samples(3, 5)
    found = curate(program, collected, curator=Curator(max_per_example=2))["analyst"]
    per_example = [row.example_key for row in found.rows]
    assert sorted(per_example.count(key) for key in set(per_example)) == [2, 2, 2]
    assert found.dropped == {"over the cap per example": 9}


def test_an_agent_gets_at_most_its_cap_over_all_examples():
    program, collected = samples(6, 2)
    sets = curate(program, collected, curator=Curator(max_rows=5))
    assert sizes(sets) == {"analyst": 5, "solver.predict": 5}
    assert sets["analyst"].dropped == {"over the cap per predictor": 7}
    assert len({row.example_key for row in sets["analyst"].rows}) > 2  # drawn, not the first few


def test_the_order_depends_on_the_seed_and_on_nothing_else():
    program, collected = samples(6, 2)
    curator = Curator(max_per_example=1, max_rows=4)
    shuffled = random.Random(5).sample(collected, len(collected))
    first, again, other = (
        curate(program, found, curator=curator, seed=seed)
        for found, seed in ((collected, 0), (iter(shuffled), 0), (collected, 1))
    )
    assert first == again
    assert first["analyst"].rows != other["analyst"].rows
    assert Curator().curate(program, [], each(program), threshold=1.0)["analyst"].rows == ()


def test_of_equal_rows_the_same_one_stays_whatever_the_order():
    program, collected = samples(6, 2)
    collected = [
        edited(run, 0, inputs={"question": "one"}, outputs={"facts": "same"}, prompt=None, signature="")
        for run in collected
    ]
    found = [curate(program, order, curator=Curator(max_per_example=1)) for order in (collected, collected[::-1])]
    assert found[0] == found[1]
    assert found[0]["analyst"].dropped == {"duplicate": 11}


@pytest.mark.parametrize(("max_per_example", "max_rows", "expected"), [(4, None, 12), (100, 0, 0), (1, 100, 6)])
def test_caps_at_their_edges(max_per_example, max_rows, expected):
    program, collected = samples(6, 2)
    found = curate(program, collected, curator=Curator(max_per_example, max_rows))["analyst"]
    assert len(found.rows) == expected
    assert len(found.rows) + sum(found.dropped.values()) == 12


# Appraisals


def test_an_appraisal_leaves_steps_out_and_weighs_the_others():
    program, (first, second) = samples(2, 1)

    def appraise(run, step):
        if step.predictor == "analyst":
            return Appraisal(weight=0.5)
        return Appraisal("made no difference") if run.id == first.id else Appraisal()

    sets = curate(program, [first, second], appraise=appraise)
    assert [row.weight for row in sets["analyst"].rows] == [0.5, 0.5]
    assert [row["weight"] for row in sets["analyst"].chat] == [0.5, 0.5]
    assert [row.trajectory for row in sets["solver.predict"].rows] == [second.id]
    assert [list(row) for row in sets["solver.predict"].chat] == [["messages"]]
    assert sets["solver.predict"].dropped == {"made no difference": 1}


def test_a_step_that_gives_no_row_is_not_appraised():
    program, (run,) = samples(1, 1)
    asked = []

    def appraise(run, step):
        asked.append(step.predictor)
        return Appraisal()

    curate(program, [run], threshold=2.0, appraise=appraise)
    assert asked == []
    curate(program, [run], {"analyst": ["analyst"]}, appraise=appraise)
    assert asked == ["analyst"]


# Files


def test_files_are_openai_chat_lines_with_their_sources_beside_them(tmp_path):
    program = author(Team(), facts="Zürich\u2028„ja“ 🙂", reasoning="r", answer="4")
    collected = runs(program, {"question": "q1"}, {"question": "q2"})
    found = curate(program, collected)["analyst"]
    found.write(tmp_path / "deep" / "analyst.jsonl")
    lines = (tmp_path / "deep" / "analyst.jsonl").read_text("utf-8").removesuffix("\n").split("\n")
    rows = [json.loads(line) for line in lines]
    assert [find_data_error_chat(row) for row in rows] == [None, None]
    assert rows == found.chat
    assert "Zürich" in lines[0]
    sources = [json.loads(line) for line in (tmp_path / "deep" / "analyst.sources.jsonl").read_text().splitlines()]
    assert [source["row"] for source in sources] == [row.id for row in found.rows]
    assert {source["trajectory"] for source in sources} == {run.id for run in collected}
    assert {source["predictor"] for source in sources} == {"analyst"}
    assert [source["example"] for source in sources] == [row.example_key for row in found.rows]


def test_weights_are_written_beside_the_chat_lines(tmp_path):
    program, collected = samples(1, 1)
    found = curate(program, collected, appraise=lambda run, step: Appraisal(weight=0.5))["analyst"]
    found.write(tmp_path / "analyst.jsonl")
    assert list(json.loads((tmp_path / "analyst.jsonl").read_text())) == ["messages"]
    assert json.loads((tmp_path / "analyst.sources.jsonl").read_text())["weight"] == 0.5


def test_a_set_without_rows_is_an_empty_file(tmp_path):
    curate(team(), [])["analyst"].write(tmp_path / "analyst.jsonl")
    assert (tmp_path / "analyst.jsonl").read_bytes() == b""


# Adapters that cannot


@pytest.mark.parametrize("adapter", ADAPTERS, ids=by_name)
def test_an_adapter_that_can_write_rows_is_accepted(adapter):
    check_adapter(adapter)


def test_an_adapter_that_cannot_write_rows_is_refused_with_what_to_use():
    for adapter in (dspy.JSONAdapter(), dspy.TwoStepAdapter(ScriptedLM(["x"]))):
        with pytest.raises(UnpreparedProgramError, match=r"(JSON|TwoStep)Adapter.*PlainAdapter"):
            check_adapter(adapter)
    with pytest.raises(UnpreparedProgramError, match="JSONAdapter cannot write training rows"):
        training_messages(dspy.JSONAdapter(), dspy.Signature("question -> answer"), {"question": "?"}, {"answer": "!"})


def test_the_probe_works_without_an_lm():
    program = Team()
    probe = PromptProbe(program)
    found, reason = probe.prompt("analyst", {"question": "?"})
    assert ([message["role"] for message in found.messages], reason) == (["system", "user"], "")
    reply, reason = probe.reply("analyst", {"question": "?"}, {"facts": "none"})
    assert ("none" in reply["content"], reason) == (True, "")


def test_rows_can_be_made_in_an_event_loop():
    program = team()
    collected = runs(program, {"question": "2+2?"})

    async def inside():
        return sizes(curate(program, collected))

    assert asyncio.run(inside()) == {"analyst": 1, "solver.predict": 1}


def test_parallel_steps_before_an_edit_are_not_taught():
    step = Step("analyst", 0, {"question": "a"}, {"facts": "f"}, "lm", started=0, ended=3)
    beside = replace(step, occurrence=1, inputs={"question": "b"}, started=1, ended=2)
    run = Trajectory("key", (step, beside), None, 1.0, origin="repair", edited=0)
    (row,) = curate(team(), [run])["analyst"].rows
    assert "b" not in row.messages[1]["content"].split("\n")[1]
