import asyncio
import threading
import time

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sirius_dspy
from sirius_dspy import Agent, AgentGraph, Collect, SiriuS
from sirius_dspy.errors import GraphError, SiriuSError
from sirius_dspy.graph.wiring import Edge
from sirius_dspy.running.record import arecord, record
from sirius_dspy.running.replay import replay
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, ToyLM, chat_reply
from sirius_dspy.trajectory import Edit
from tests.graph_help import CHAT, QUESTION, answering, answers, chain, team, trajectory_of


@pytest.fixture(autouse=True)
def chat_adapter(dspy_defaults):
    dspy.configure(adapter=CHAT)


# Structure


def test_agents_become_named_predictors_and_edges_follow_the_fields():
    graph = chain()
    assert [name for name, _ in graph.named_predictors()] == ["physicist", "mathematician", "summarizer.predict"]
    assert graph.stages == (("physicist",), ("mathematician",), ("summarizer",))
    assert graph.edges == (
        Edge("physicist", "mathematician", "laws"),
        Edge("physicist", "summarizer", "laws"),
        Edge("mathematician", "summarizer", "solution"),
    )
    assert graph.wirings["physicist"].role == "names the laws"


def test_agents_run_in_dependency_order_whatever_the_order_they_are_given_in():
    graph = AgentGraph("question -> answer", dict(reversed(team().items())))
    lm = answering(graph)
    assert graph(**QUESTION.inputs()).answer == "20 m"
    assert ["laws" in p.user for p in lm.requests] == [True, True, True]
    assert [p.field("laws") for p in lm.requests] == [None, "free fall: s = g t^2 / 2", "free fall: s = g t^2 / 2"]


def test_the_prediction_has_the_outputs_of_the_signature_only():
    graph = chain()
    answering(graph)
    assert graph(**QUESTION.inputs()).toDict() == {"answer": "20 m"}


def test_fields_can_be_renamed_on_both_sides():
    summarize = dspy.Predict("text -> summary")
    graph = AgentGraph(
        "methods, results -> answer",
        {
            "methods_analyst": Agent(summarize, reads={"text": "methods"}, writes={"summary": "methods_summary"}),
            "results_analyst": Agent(
                summarize.deepcopy(), reads={"text": "results"}, writes={"summary": "results_summary"}
            ),
            "solver": dspy.Predict("methods_summary, results_summary -> answer"),
        },
    )
    lm = answering(
        graph,
        lambda p: (
            chat_reply(summary=p.field("text").upper())
            if p.asks_for("summary")
            else chat_reply(answer=f"{p.field('methods_summary')}+{p.field('results_summary')}")
        ),
    )
    assert graph(methods="mice", results="none").answer == "MICE+NONE"
    assert lm.calls == 3
    assert graph.stages == (("methods_analyst", "results_analyst"), ("solver",))


def test_a_reasoning_agent_keeps_its_reasoning_unless_it_is_asked_for():
    two = {
        "first": dspy.ChainOfThought("question -> draft"),
        "second": Agent(dspy.ChainOfThought("question, draft -> answer"), writes={"reasoning": "proof"}),
    }
    graph = AgentGraph("question -> answer, proof", two)
    answering(
        graph, lambda p: chat_reply(reasoning="so", **({"draft": "d"} if p.asks_for("draft") else {"answer": "a"}))
    )
    assert graph(question="?").toDict() == {"answer": "a", "proof": "so"}


def test_a_graph_can_be_an_agent_of_a_graph():
    graph = AgentGraph("question -> verdict", {"team": chain(), "judge": dspy.Predict("question, answer -> verdict")})
    answering(graph, lambda p: chat_reply(verdict="right") if p.asks_for("verdict") else answers(p))
    assert graph(**QUESTION.inputs()).verdict == "right"
    assert [name for name, _ in graph.named_predictors()][:2] == ["team.physicist", "team.mathematician"]


class Shout(dspy.Module):
    def forward(self, text):
        return dspy.Prediction(loud=text.upper())


def test_a_module_without_a_signature_says_what_it_reads_and_writes():
    said = Agent(Shout(), reads={"text": "answer"}, writes={"loud": "shouted"})
    graph = AgentGraph("question -> shouted", team(shouter=said))
    answering(graph)
    assert graph(**QUESTION.inputs()).shouted == "20 M"
    assert asyncio.run(graph.acall(**QUESTION.inputs())).shouted == "20 M"  # though it has no `aforward`
    with pytest.raises(GraphError, match=r"'shouter' \(Shout\).*reads="):
        AgentGraph("question -> shouted", team(shouter=Shout()))


# Errors at construction

P = dspy.Predict


@pytest.mark.parametrize(
    ("signature", "agents", "message"),
    [
        ("q -> a", {}, "No agent writes the outputs"),
        ("q -> a", {"one": P("q, b -> a"), "two": P("a -> b")}, "one -> two -> one|two -> one -> two"),
        ("q -> a", {"one": Agent(P("b, q -> a"), reads={"b": "a"})}, r"one -> one"),
        ("q -> a", {"one": P("q, hints -> a")}, r"'one' reads \['hints'\], which no agent writes"),
        ("q -> a, b", {"one": P("q -> a")}, r"No agent writes the outputs \['b'\]"),
        ("q -> a", {"one": P("q -> a"), "two": P("q -> a")}, r"'two' writes the field 'a', and so does agent 'one'"),
        ("q -> a", {"one": P("q -> a"), "two": P("a -> q")}, "writes the field 'q', and so does the caller"),
        ("q -> a", {"one": P("q -> a"), "two": P("q -> b")}, "Nothing that agent 'two' writes leads to"),
        ("q -> a", {"one": P("q -> a"), "two": P("q -> b"), "three": P("b -> c")}, "Nothing that agent 'two'"),
        ("q, c -> a", {"one": P("q -> a")}, r"reads the inputs \['c'\]"),
        ("q -> a", {"forward": P("q -> a")}, "name 'forward' cannot be an attribute"),
        ("q -> a", {"chart": P("q -> a")}, "name 'chart' cannot be an attribute"),
        ("q -> a", {"stages": P("q -> a")}, "name 'stages' cannot be an attribute"),
        ("q -> a", {"not a name": P("q -> a")}, "name 'not a name' cannot be an attribute"),
        ("q -> a", {"one": "q -> a"}, "'one' is 'q -> a', expected a `dspy.Module`"),
        ("q -> a", {"one": Agent(P("q -> a"), reads={"query": "q"})}, r"'one' renames \['query'\]"),
    ],
)
def test_what_is_no_graph_is_refused(signature, agents, message):
    with pytest.raises(GraphError, match=message) as raised:
        AgentGraph(signature, agents)
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, SiriuSError)


def test_two_agents_cannot_share_a_predictor():
    shared = P("q -> b")
    with pytest.raises(GraphError, match="'one' and 'two' share a predictor"):
        AgentGraph("q -> a", {"one": shared, "two": Agent(shared, writes={"b": "c"}), "three": P("b, c -> a")})


@pytest.mark.parametrize("inputs", [{}, {"question": "?", "context": "!"}, {"context": "!"}])
def test_other_inputs_than_declared_are_refused(inputs):
    with pytest.raises(GraphError, match=r"expected \['question'\]"):
        chain()(**inputs)


class Forgetful(dspy.Module):
    def forward(self, question):
        return dspy.Prediction(other=1)


def test_an_agent_that_does_not_write_its_field_is_an_error():
    graph = AgentGraph(
        "question -> answer", {"one": Agent(Forgetful(), reads={"question": "question"}, writes={"answer": "answer"})}
    )
    with pytest.raises(GraphError, match=r"'one' returned Prediction without \['answer'\]"):
        graph(question="?")


# Running side by side, recorded and replayed


def diamond():
    return AgentGraph(
        "question -> answer",
        {
            "start": P("question -> plan"),
            "left": P("plan -> pro"),
            "right": P("plan -> contra"),
            "end": P("pro, contra -> answer"),
        },
    )


def diamond_answers(prompt):
    if prompt.asks_for("plan"):
        return chat_reply(plan=f"plan for {prompt.field('question')}")
    for side in ("pro", "contra"):
        if prompt.asks_for(side):
            return chat_reply(**{side: f"{side} argument on {prompt.field('plan')}"})
    return chat_reply(answer=f"{prompt.field('pro')}; {prompt.field('contra')}")


def diamond_answer(question):
    plan = f"plan for {question}"
    return f"pro argument on {plan}; contra argument on {plan}"


def test_independent_agents_run_at_the_same_time():
    both = threading.Barrier(2, timeout=20)  # broken, and so an error, if one waits for the other to end

    def script(prompt):
        if prompt.asks_for("pro") or prompt.asks_for("contra"):
            both.wait()
        return diamond_answers(prompt)

    graph = diamond()
    answering(graph, script)
    assert graph(question="tea?").answer == diamond_answer("tea?")


def test_parallel_agents_keep_the_callers_context():
    graph = diamond()
    with dspy.context(lm=ScriptedLM(diamond_answers)):  # no agent has an LM of its own
        assert graph(question="tea?").answer == diamond_answer("tea?")


def test_many_runs_at_once_do_not_mix():
    graph = diamond()
    answering(graph, diamond_answers, latency_s=0.001)
    tasks = [
        Task(dspy.Example(question=f"q{n}", answer=diamond_answer(f"q{n}")).with_inputs("question")) for n in range(32)
    ]
    found = list(Rollouts(lambda e, p, trace=None: e.answer == p.answer, num_threads=8).run_all(graph, tasks))
    assert [trajectory.reward for _, trajectory in found] == [1.0] * 32
    assert all(len(trajectory.steps) == 4 for _, trajectory in found)


def test_both_sides_run_to_their_end_before_an_error_is_raised():
    slow_is_done = threading.Event()

    def script(prompt):
        if prompt.asks_for("pro"):
            raise RuntimeError("left is broken")
        if prompt.asks_for("contra"):
            time.sleep(0.05)
            slow_is_done.set()
        return diamond_answers(prompt)

    graph = diamond()
    answering(graph, script)
    recording = record(graph, {"question": "tea?"})
    assert slow_is_done.is_set()
    assert "left is broken" in str(recording.error)
    assert sorted((step.predictor, step.failure is None) for step in recording.steps) == [
        ("left", False),
        ("right", True),
        ("start", True),
    ]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_run_is_recorded_the_same_way_with_and_without_asyncio(is_async):
    graph = diamond()
    answering(graph, diamond_answers)
    recording = asyncio.run(arecord(graph, {"question": "tea?"})) if is_async else record(graph, {"question": "tea?"})
    assert recording.error is None
    assert recording.prediction.answer == diamond_answer("tea?")
    assert {step.predictor for step in recording.steps} == {"start", "left", "right", "end"}
    assert [recording.steps[0].predictor, recording.steps[3].predictor] == ["start", "end"]


def test_asyncio_errors_are_raised_after_all_have_ended():
    graph = diamond()
    lm = answering(graph, lambda p: "no field" if p.asks_for("pro") else diamond_answers(p), latency_s=0.01)
    with pytest.raises(Exception, match="pro"):
        asyncio.run(graph.acall(question="tea?"))
    assert lm.calls == 3


def test_a_replay_asks_only_who_reads_the_edit():
    graph = diamond()
    lm = answering(graph, diamond_answers)
    recorded = trajectory_of(record(graph, {"question": "tea?"}))
    position = next(n for n, step in enumerate(recorded.steps) if step.predictor == "left")
    again = replay(graph, {"question": "tea?"}, recorded, Edit(position, {"pro": "it warms"}))
    assert again.prediction.answer == "it warms; contra argument on plan for tea?"
    assert lm.calls == 5  # four of the recording, and `end` once more
    same = replay(graph, {"question": "tea?"}, recorded, Edit(position, recorded.steps[position].outputs))
    assert (same.prediction.answer, lm.calls) == (diamond_answer("tea?"), 5)


def test_copies_have_their_own_lms():
    graph = chain()
    answering(graph)
    copy = graph.deepcopy()
    lm = answering(copy, lambda p: answers(p).replace("20 m", "5 m"))
    assert copy(**QUESTION.inputs()).answer == "unknown"
    assert graph(**QUESTION.inputs()).answer == "20 m"
    assert lm.calls == 3
    assert copy.edges == graph.edges


def test_state_goes_through_a_file(tmp_path):
    graph, other = chain(), chain()
    graph.mathematician.demos = [dspy.Example(question="q", laws="l", solution="s")]
    graph.save(tmp_path / "graph.json")
    other.load(tmp_path / "graph.json")
    assert other.mathematician.demos[0]["solution"] == "s"
    answering(other)
    assert other(**QUESTION.inputs()).answer == "20 m"


def toy_answers(prompt):
    if prompt.asks_for("feedback"):
        return chat_reply(feedback="name free fall")
    return answers(prompt)


def test_a_graph_is_compiled_and_saved_like_any_program(tmp_path):
    graph = chain()
    lm = ToyLM(skill=toy_answers)
    graph.set_lm(lm)
    optimizer = SiriuS(
        lambda e, p, trace=None: e.answer == p.answer,
        iterations=1,
        collect=Collect(samples=1),
        augmenter=None,
        run_dir=tmp_path / "run",
    )
    compiled = optimizer.compile(graph, trainset=[QUESTION], valset=[QUESTION])
    assert sorted(compiled.detailed_results["agents"]) == ["mathematician", "physicist", "summarizer.predict"]
    sirius_dspy.save(compiled, tmp_path / "checkpoint")
    lms = dict.fromkeys(compiled.detailed_results["agents"], lm)
    loaded = sirius_dspy.load(tmp_path / "checkpoint", program=chain(), lms=lms)
    assert loaded(**QUESTION.inputs()).answer == "20 m"


@st.composite
def wirings(draw):
    """A random acyclic graph in which everything leads to the last agent: agent -> the agents it reads."""
    size = draw(st.integers(2, 6))
    reads = {number: draw(st.sets(st.integers(0, number - 1))) if number else set() for number in range(size)}
    read = set().union(*reads.values())
    reads[size - 1] |= {number for number in range(size - 1) if number not in read}
    return reads, draw(st.permutations(range(size)))


@settings(deadline=None)
@given(wirings())
def test_every_agent_runs_once_and_after_all_that_it_reads(wiring):
    reads, order = wiring
    calls = []

    class Noting(dspy.Module):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def forward(self, **inputs):
            calls.append(self.number)
            return dspy.Prediction(out=[self.number, sorted(inputs)])

    agents = {}
    for number in order:
        fields = {"question": "question"} | {f"f{other}": f"f{other}" for other in reads[number]}
        agents[f"a{number}"] = Agent(Noting(number), reads=fields, writes={"out": f"f{number}"})
    last = len(reads) - 1
    result = AgentGraph(f"question -> f{last}", agents)(question="?")
    assert sorted(calls) == sorted(reads)
    assert all(calls.index(other) < calls.index(number) for number in reads for other in reads[number])
    assert result[f"f{last}"] == [last, sorted(["question", *(f"f{other}" for other in reads[last])])]
