"""MkDocs hook: `sirius_dspy` draws the pictures of the pages from a graph, a run and a repair that really happen.

The team is that of the paper's figure 1: a physicist, a mathematician, a summarizer. Its LM is scripted: it gets the
formula for the time wrong, and corrects it when a critic says what is wrong.
"""

from __future__ import annotations

from typing import Any

import dspy
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sirius_dspy import Agent, AgentGraph, CriticAugmenter, data_flow, to_svg
from sirius_dspy.graph.chart import Flow, FlowChart, Node
from sirius_dspy.library.schema import METADATA
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import Prompt, ScriptedLM, chat_reply
from sirius_dspy.trajectory import Trajectory

EXAMPLE = dspy.Example(question="A stone falls 45 m. How long does it take?", answer="3.0 s").with_inputs("question")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures to the site."""
    failed, repaired = _runs()
    charts = {
        "agent": (_team().chart, "Three agents, and what they read from each other"),
        "step": (_step(failed), "One call of one predictor"),
        "trajectory": (data_flow(failed), "A run that failed"),
        "library": (_library(), "Runs of one example in the experience library"),
        "repair": (data_flow(repaired), "The same run, repaired"),
        "iteration": (_iteration(), "One iteration"),
        "tables": (_tables(), "Tables that refer to others"),
    }
    for name, (chart, title) in charts.items():
        files.append(File.generated(config, f"figures/{name}.svg", content=to_svg(chart, title)))
    return files


def _team() -> AgentGraph:
    agents = {
        "physicist": Agent(dspy.Predict("question -> laws"), role="names the laws"),
        "mathematician": Agent(dspy.Predict("question, laws -> formula"), role="solves for the unknown"),
        "summarizer": Agent(dspy.Predict("question, laws, formula -> answer"), role="gives the answer"),
    }
    return AgentGraph("question -> answer", agents)


def _metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    return bool(prediction.answer == example.answer)


def _reply(prompt: Prompt) -> str:
    """Answer as the scripted LM: with a wrong formula, and after feedback with the right one."""
    if prompt.asks_for("feedback"):
        return chat_reply(feedback="The time enters the law squared.")
    if prompt.asks_for("rewritten"):
        return chat_reply(rewritten=prompt.field("text"))
    if prompt.asks_for("laws"):
        return chat_reply(laws="h = g t^2 / 2")
    if prompt.asks_for("formula"):
        return chat_reply(formula="t = sqrt(2 h / g)" if prompt.field("feedback") else "t = 2 h / g")
    return chat_reply(answer="3.0 s" if "sqrt" in str(prompt.field("formula")) else "9.2 s")


def _runs() -> tuple[Trajectory, Trajectory]:
    """Make a failed run and its repair."""
    program = _team()
    program.set_lm(ScriptedLM(_reply))
    rollouts = Rollouts(_metric)
    editable = frozenset(name for name, _ in program.named_predictors())
    with dspy.context(adapter=dspy.ChatAdapter()):
        failed = rollouts.run_one(program, Task(EXAMPLE))
        context = RepairContext(program, rollouts, 1.0, editable)
        repaired = CriticAugmenter().repair(failed, EXAMPLE, context).trajectories
    return failed, repaired[-1]


def _step(trajectory: Trajectory) -> FlowChart:
    """Draw the mathematician's step with its values."""
    step = trajectory.steps[1]
    inputs = [Node(f"{name}: {value}", "input") for name, value in step.inputs.items()]
    outputs = [Node(f"{name}: {value}", "output") for name, value in (step.outputs or {}).items()]
    place = len(inputs)
    flows = [Flow(index, place, "read") for index in range(place)]
    flows += [Flow(place, place + 1 + index, "written") for index in range(len(outputs))]
    return FlowChart((*inputs, Node(step.predictor, "live"), *outputs), tuple(flows))


def _library() -> FlowChart:
    nodes = (
        Node("example", "input"),
        Node("rollout 1: reward 0", "failed"),
        Node("rollout 2: reward 1", "live"),
        Node("repair: reward 1", "edited"),
        Node("training sets", "output"),
    )
    flows = (
        Flow(0, 1, "sample 0"),
        Flow(0, 2, "sample 1"),
        Flow(1, 3, "parent"),
        Flow(2, 4, "all steps"),
        Flow(3, 4, "from the edit on"),
    )
    return FlowChart(nodes, flows)


def _iteration() -> FlowChart:
    stages = ("collect", "repair", "curate", "fine-tune", "gate")
    carried = ("runs", "successful runs", "rows per agent", "new weights")
    return _chain([Node(stage, "agent") for stage in stages], carried)


def _chain(nodes: list[Node], labels: tuple[str, ...]) -> FlowChart:
    return FlowChart(tuple(nodes), tuple(Flow(index, index + 1, label) for index, label in enumerate(labels)))


def _tables() -> FlowChart:
    """Draw the foreign keys, except those of a table to itself, because a chart has no cycles."""
    names = list(METADATA.tables)
    linked = {(key.column.table.name, table.name, key.parent.name) for table in METADATA.tables.values()
              for key in table.foreign_keys if key.column.table is not table}  # fmt: skip
    tables = [name for name in names if any(name in pair[:2] for pair in linked)]
    flows = [Flow(tables.index(target), tables.index(source), column) for target, source, column in sorted(linked)]
    return FlowChart(tuple(Node(name, "agent") for name in tables), tuple(flows))
