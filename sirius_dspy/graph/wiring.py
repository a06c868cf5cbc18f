"""How the agents of a graph are connected: what each reads and writes, and in which order they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import dspy

from sirius_dspy.errors import GraphError
from sirius_dspy.graph.chart import Flow, FlowChart, Kind, Node


@dataclass(frozen=True)
class Agent:
    """One agent of a graph."""

    module: dspy.Module
    """The module that answers: a predictor, or any module with predictors."""
    role: str = ""
    """What the agent is for, in a few words. Charts show it; the LM does not read it."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """Input of the module to field of the graph, for inputs whose field has another name. A module without a
    `signature` must list all its inputs here."""
    writes: Mapping[str, str] = field(default_factory=dict)
    """Output of the module to field of the graph, likewise. The `reasoning` of a `dspy.ChainOfThought` is not a field
    of the graph unless it is named here."""


class Edge(NamedTuple):
    """A field that one agent writes and another one reads."""

    source: str
    target: str
    field: str


@dataclass(frozen=True)
class Wiring:
    """How an agent is connected; its module is the graph's attribute of that name."""

    agent: str
    role: str
    reads: Mapping[str, str]
    writes: Mapping[str, str]


def connect(name: str, agent: Agent) -> Wiring:
    """Return the fields that an agent reads and writes.

    Raises:
        GraphError: The module has no signature to read them from, or a rename names a field that it does not have.
    """
    inputs, outputs = _fields_of(agent.module)
    if not (inputs or agent.reads) or not (outputs or agent.writes):
        raise GraphError(
            f"Agent {name!r} ({type(agent.module).__name__}) has no `signature` with inputs and outputs, which would "
            "tell what it reads and writes. Pass `Agent(module, reads={'input': 'field'}, writes={'output': 'field'})`."
        )
    if inputs or outputs:
        _check_renames(name, agent, inputs, outputs)
    reads = {item: item for item in inputs} | dict(agent.reads)
    writes = {item: item for item in outputs} | dict(agent.writes)
    return Wiring(name, agent.role, reads, writes)


def _check_renames(name: str, agent: Agent, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    for renames, fields in ((agent.reads, inputs), (agent.writes, [*outputs, "reasoning"])):
        if unknown := sorted(set(renames) - set(fields)):
            raise GraphError(
                f"Agent {name!r} renames {unknown}; its module has the inputs {list(inputs)} and the outputs "
                f"{list(outputs)}. Correct `reads` or `writes`."
            )


def _fields_of(module: dspy.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return inputs and outputs of a module's signature; both are empty if it does not have one."""
    is_reasoning = isinstance(module, dspy.ChainOfThought)
    signature = module.predict.signature if is_reasoning else getattr(module, "signature", None)
    if not (isinstance(signature, type) and issubclass(signature, dspy.Signature)):
        return (), ()
    outputs = tuple(name for name in signature.output_fields if not (is_reasoning and name == "reasoning"))
    return tuple(signature.input_fields), outputs


def plan_stages(
    inputs: Sequence[str], outputs: Sequence[str], wirings: Mapping[str, Wiring]
) -> tuple[tuple[str, ...], ...]:
    """Return the agents in topological order; those of one stage do not depend on each other.

    Raises:
        GraphError: The agents do not form a graph; see `AgentGraph`.
    """
    writers = _find_writers(inputs, wirings)
    _check_fields(inputs, outputs, wirings, writers)
    stages = _sort(wirings, writers)
    _check_ends(inputs, outputs, wirings, writers)
    return stages


def _find_writers(inputs: Sequence[str], wirings: Mapping[str, Wiring]) -> dict[str, str]:
    """Map each field to the one agent that writes it."""
    writers: dict[str, str] = {}
    for name, wiring in wirings.items():
        for item in wiring.writes.values():
            if item in writers or item in inputs:
                other = f"agent {writers[item]!r}" if item in writers else "the caller, as an input"
                raise GraphError(
                    f"Agent {name!r} writes the field {item!r}, and so does {other}. Rename it: "
                    f"`Agent(module, writes={{{item!r}: '{name}_{item}'}})`."
                )
            writers[item] = name
    return writers


def _check_fields(
    inputs: Sequence[str], outputs: Sequence[str], wirings: Mapping[str, Wiring], writers: Mapping[str, str]
) -> None:
    fields = {*inputs, *writers}
    for name, wiring in wirings.items():
        if unknown := sorted(set(wiring.reads.values()) - fields):
            raise GraphError(
                f"Agent {name!r} reads {unknown}, which no agent writes; the fields are {sorted(fields)}. "
                "Correct the name, or map it with `reads=`."
            )
    if missing := sorted(set(outputs) - set(writers)):
        raise GraphError(
            f"No agent writes the outputs {missing}; the agents write {sorted(writers)}. Correct the graph's signature."
        )


def _sort(wirings: Mapping[str, Wiring], writers: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    sorter = TopologicalSorter(
        {name: {writers[item] for item in wiring.reads.values() if item in writers} for name, wiring in wirings.items()}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        raise GraphError(
            f"The agents {' -> '.join(error.args[1])} wait for each other. Change what one of them reads: each agent "
            "of a graph runs once, and a loop belongs inside the module of one agent."
        ) from error
    order, stages = list(wirings), []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=order.index)
        stages.append(tuple(ready))
        sorter.done(*ready)
    return tuple(stages)


def _check_ends(
    inputs: Sequence[str], outputs: Sequence[str], wirings: Mapping[str, Wiring], writers: Mapping[str, str]
) -> None:
    needed = _find_needed(outputs, wirings, writers)
    for name, wiring in wirings.items():
        if needed.isdisjoint(wiring.writes.values()):
            raise GraphError(
                f"Nothing that agent {name!r} writes leads to the outputs {list(outputs)}. Let an agent read one of "
                f"{sorted(wiring.writes.values())}, or leave {name!r} out: its LM calls would be paid for nothing."
            )
    if unread := sorted(set(inputs) - needed):
        raise GraphError(
            f"No agent that leads to an output reads the inputs {unread}. Let one read them, or remove them from the "
            "signature."
        )


def _find_needed(outputs: Sequence[str], wirings: Mapping[str, Wiring], writers: Mapping[str, str]) -> set[str]:
    """Return the fields that the outputs depend on, directly or not."""
    needed, queue = set(outputs), list(outputs)
    while queue:
        writer = writers.get(queue.pop())
        fresh = set(wirings[writer].reads.values()) - needed if writer else set()
        needed |= fresh
        queue.extend(fresh)
    return needed


def find_edges(wirings: Mapping[str, Wiring]) -> tuple[Edge, ...]:
    """Return who reads which field of whom."""
    return tuple(
        Edge(source, target, item)
        for source, writing in wirings.items()
        for target, reading in wirings.items()
        for item in writing.writes.values()
        if item in reading.reads.values()
    )


def read_fields(wiring: Wiring, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of an agent's module."""
    return {name: fields[item] for name, item in wiring.reads.items()}


def collect_writes(wiring: Wiring, result: Any) -> dict[str, Any]:
    """Return the fields that an agent writes, from the result of its module.

    Raises:
        GraphError: The result lacks one of them.
    """
    if missing := [name for name in wiring.writes if not hasattr(result, name)]:
        raise GraphError(
            f"Agent {wiring.agent!r} returned {type(result).__name__} without {missing}. Return a `dspy.Prediction` "
            f"with the fields {list(wiring.writes)}, or correct the agent's `writes`."
        )
    return {item: getattr(result, name) for name, item in wiring.writes.items()}


def draw_graph(inputs: Sequence[str], outputs: Sequence[str], wirings: Mapping[str, Wiring]) -> FlowChart:
    """Return a chart of the agents, with the inputs and outputs of the graph."""
    names: list[tuple[Kind, str]] = [("input", name) for name in inputs]
    names += [("agent", name) for name in wirings]
    names += [("output", name) for name in outputs]
    at = {name: number for number, name in enumerate(names)}
    reads = [(item, name) for name, wiring in wirings.items() for item in wiring.reads.values()]
    writes = [(name, item) for name, wiring in wirings.items() for item in wiring.writes.values()]
    flows = [Flow(at["input", item], at["agent", name], item) for item, name in reads if item in inputs]
    flows += [Flow(at["agent", edge.source], at["agent", edge.target], edge.field) for edge in find_edges(wirings)]
    flows += [Flow(at["agent", name], at["output", item], item) for name, item in writes if item in outputs]
    nodes = [Node(name, kind, wirings[name].role if kind == "agent" else "") for kind, name in names]
    return FlowChart(tuple(nodes), tuple(flows))
