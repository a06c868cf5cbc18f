"""What flowed in a run, and charts of it as Mermaid and SVG."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_dspy import Agent, AgentGraph, data_flow, to_mermaid, to_svg
from sirius_dspy.graph.chart import Flow, FlowChart, Node
from sirius_dspy.running.record import record
from sirius_dspy.trajectory import Failure, Step, Trajectory
from tests.graph_help import CHAT, QUESTION, answering, chain, trajectory_of


@pytest.fixture(autouse=True)
def chat_adapter(dspy_defaults):
    dspy.configure(adapter=CHAT)


# What flowed


def step(predictor, inputs, outputs, started, ended, **more):
    return Step(predictor, more.pop("occurrence", 0), inputs, outputs, "lm", started=started, ended=ended, **more)


def flows_of(*steps):
    return [(flow.source, flow.target, flow.label) for flow in data_flow(Trajectory("key", steps, None, 0.0)).flows]


def test_data_flow_is_what_the_run_did():
    graph = chain()
    answering(graph)
    recording = record(graph, QUESTION.inputs())
    chart = data_flow(trajectory_of(recording))
    assert [node.label for node in chart.nodes] == ["physicist", "mathematician", "summarizer.predict"]
    assert [(flow.source, flow.target, flow.label) for flow in chart.flows] == [
        (0, 1, "laws"),
        (0, 2, "laws"),
        (0, 2, "laws -> solution"),  # the mathematician quotes the laws
        (1, 2, "solution"),
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        chart.nodes = ()


def test_data_flow_finds_values_in_lists_and_long_texts():
    first = step("a", {}, {"move": "offer five apples", "count": 3}, 0, 1)
    assert flows_of(first, step("b", {"history": [{"text": "offer five apples"}]}, {}, 2, 3)) == [
        (0, 1, "move -> history")
    ]
    assert flows_of(first, step("b", {"history": "A said: offer five apples."}, {}, 2, 3)) == [
        (0, 1, "move -> history")
    ]
    assert flows_of(first, step("b", {"count": 3}, {}, 2, 3)) == [(0, 1, "count")]
    assert flows_of(first, step("b", {"count": 4, "flag": True}, {}, 2, 3)) == []


def test_data_flow_does_not_take_short_words_in_texts_for_copies():
    said_no = step("a", {}, {"answer": "no", "one": 1, "none": None, "empty": ""}, 0, 1)
    assert flows_of(said_no, step("b", {"context": "nothing is known", "empty": "", "none": None}, {}, 2, 3)) == []
    assert flows_of(said_no, step("b", {"flag": True, "proposed": " no\n"}, {}, 2, 3)) == [(0, 1, "answer -> proposed")]


def test_data_flow_does_not_go_between_steps_that_ran_at_the_same_time():
    text = "the same long text"
    assert flows_of(step("a", {"x": text}, {"x": text}, 0, 2), step("b", {"x": text}, {"x": text}, 1, 3)) == []


def test_steps_of_a_loop_are_told_apart_and_failures_marked():
    failed = step("a", {}, None, 2, 3, occurrence=1, failure=Failure("AdapterParseError", "no field"))
    chart = data_flow(Trajectory("k", (step("a", {}, {"x": "1"}, 0, 1), failed), None, 0.0))
    assert [(node.label, node.kind) for node in chart.nodes] == [("a #1", "live"), ("a #2", "failed")]
    assert chart.nodes[1].note == "AdapterParseError: no field"


# Pictures

HOSTILE = FlowChart(
    (
        Node('a "quoted" <b>\n]', "agent", "role & <script>alert(1)</script>"),
        Node("x" * 500 + "\x00\x0b\ud800", "output"),
    ),
    (Flow(0, 1, '|"--> end'),),
)


def test_mermaid_of_a_graph():
    assert to_mermaid(
        AgentGraph("question -> answer", {"solver": Agent(dspy.Predict("question -> answer"), role="solves")}).chart
    ) == (
        "flowchart TD\n"
        '    n0(["question"])\n'
        '    n1["solver<br/>solves"]\n'
        '    n2(["answer"])\n'
        '    n0 -->|"question"| n1\n'
        '    n1 -->|"answer"| n2\n'
        "    style n0 fill:#eef2f7,stroke:#64748b\n"
        "    style n1 fill:#e8f1fd,stroke:#2563eb\n"
        "    style n2 fill:#eef2f7,stroke:#64748b\n"
    )


def test_mermaid_escapes_what_it_would_read_as_syntax():
    lines = to_mermaid(HOSTILE).splitlines()
    assert lines[1].startswith('    n0["a #34;quoted#34; #60;b#62;#10;#93;<br/>role #38; #60;script#62;')
    assert lines[3] == '    n0 -->|"#124;#34;--#62; end"| n1'
    assert len(lines) == 6


def svg_of(chart, **options):
    return ElementTree.fromstring(to_svg(chart, **options))


def texts(svg):
    return [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_svg_is_well_formed_self_contained_and_escaped():
    drawn = to_svg(HOSTILE, title="<flow>")
    svg = ElementTree.fromstring(drawn)
    assert svg.find("{http://www.w3.org/2000/svg}title").text == "<flow>"
    assert 'a "quoted" <b>\n]' in texts(svg)
    assert "<script>" not in drawn
    assert "href" not in drawn
    assert all(len(text) <= 40 for text in texts(svg))
    assert len(texts(svg_of(FlowChart((), ())))) == 0


def test_svg_and_mermaid_show_all_of_a_graph():
    chart = chain().chart
    shown = texts(svg_of(chart))
    for text in ("question", "physicist", "mathematician", "summarizer", "answer", "laws", "solution"):
        assert text in shown
        assert text in to_mermaid(chart)


@st.composite
def dags(draw):
    size = draw(st.integers(1, 8))
    pairs = draw(st.sets(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1))))
    nodes = tuple(Node(f"agent {number}", "agent") for number in range(size))
    names = draw(st.permutations(range(size)))  # arrows go up and down in the order of the nodes
    return FlowChart(nodes, tuple(Flow(names[a], names[b], "x") for a, b in pairs if a < b))


@settings(deadline=None)
@given(dags())
def test_svg_arrows_go_down_and_boxes_do_not_overlap(chart):
    svg = svg_of(chart)
    boxes = [group.find("{*}rect").attrib for group in svg.iter("{http://www.w3.org/2000/svg}g")]
    tops = [float(box["y"]) for box in boxes]
    assert all(tops[flow.source] < tops[flow.target] for flow in chart.flows)
    spans = sorted((float(box["y"]), float(box["x"]), float(box["x"]) + float(box["width"])) for box in boxes)
    assert all(right < left for (y0, _, right), (y1, left, _) in pairwise(spans) if y0 == y1)
    assert all(left >= 0 and right <= float(svg.attrib["width"]) for _, left, right in spans)
    curves = [path.attrib["d"] for path in svg.iter("{http://www.w3.org/2000/svg}path") if "marker-end" in path.attrib]
    assert len(curves) == len({(flow.source, flow.target) for flow in chart.flows})
