"""Agents that read each other's fields, as one `dspy.Module`; and what really flowed between the steps of a run.

    AgentGraph   a directed acyclic graph of agents, run in topological order, independent agents side by side
    data_flow    what flowed between the steps of one recorded run, to be drawn with `to_mermaid` or `to_svg`

An edge is never declared: agent B follows agent A because B reads a field that A writes. So the edges cannot contradict
what the agents are really shown.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple, cast

import dspy
from dspy.signatures import ensure_signature

from sirius_dspy.errors import GraphError
from sirius_dspy.graph.chart import Flow, FlowChart, Node, to_mermaid, to_svg
from sirius_dspy.plain import readable
from sirius_dspy.trajectory import Step, Trajectory, canonical

__all__ = ["Agent", "AgentGraph", "Edge", "FlowChart", "data_flow", "to_mermaid", "to_svg"]


@dataclass(frozen=True)
class Agent:
    """One agent of a graph."""

    module: dspy.Module
    """What answers: a predictor, or any module that holds some."""
    role: str = ""
    """What the agent is for, in a few words; shown in pictures. What the LM is told is the module's own business."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """Input of the module -> field of the graph, for inputs whose field has another name. A module without a
    `signature` must have all its inputs here."""
    writes: Mapping[str, str] = field(default_factory=dict)
    """Output of the module -> field of the graph, likewise. The `reasoning` of a `dspy.ChainOfThought` stays the
    agent's own unless it is named here."""


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


class AgentGraph(dspy.Module):
    """A directed acyclic graph of agents.

    The agents become attributes, so their predictors are called `<agent>`, or `<agent>.<name in the module>`. Copying,
    saving, loading and setting LMs work as for any module, and a run can be recorded and replayed.

    Args:
        signature: The fields that the graph as a whole takes and gives, e.g. `"question -> answer"`.
        agents: Name to agent, or to just its module.

    Raises:
        GraphError: The agents do not form a graph: a cycle, a field that nobody or more than one writes, an agent or an
            input that leads nowhere, a name that cannot be an attribute.

    References:
        SiriuS (arXiv:2502.04780), section 2: the directed graph G = (V, E, P) of who reads whom.

    Examples:
        >>> graph = AgentGraph(
        ...     "question -> answer",
        ...     {
        ...         "physicist": Agent(dspy.Predict("question -> laws"), role="names the laws"),
        ...         "mathematician": dspy.Predict("question, laws -> solution"),
        ...         "summarizer": dspy.Predict("question, laws, solution -> answer"),
        ...     },
        ... )
        >>> [edge.source + " -> " + edge.target for edge in graph.edges]
        ['physicist -> mathematician', 'physicist -> summarizer', 'mathematician -> summarizer']
    """

    def __init__(self, signature: str | type[dspy.Signature], agents: Mapping[str, dspy.Module | Agent]) -> None:
        super().__init__()
        self.signature = cast("type[dspy.Signature]", ensure_signature(signature))  # None only for None
        given = {name: agent if isinstance(agent, Agent) else Agent(agent) for name, agent in agents.items()}
        self._check_modules(given)
        self.wirings = {name: _wiring(name, agent) for name, agent in given.items()}
        self.stages = _checked_stages(self.inputs, self.outputs, self.wirings)
        for name, agent in given.items():
            setattr(self, name, agent.module)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The fields that a caller gives."""
        return tuple(self.signature.input_fields)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The fields of the prediction."""
        return tuple(self.signature.output_fields)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Who reads what of whom, in the order in which the agents were given."""
        return _edges(self.wirings)

    @property
    def chart(self) -> FlowChart:
        """The graph as it can be drawn, with its inputs and outputs."""
        return _graph_chart(self)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Run every agent once; the prediction has the outputs of the signature.

        Raises:
            GraphError: The inputs are not those of the signature, or a module did not give a field that it writes.
        """
        fields = self._checked_inputs(inputs)
        for stage in self.stages:
            for written in self._run_stage(stage, fields):
                fields |= written
        return self._prediction(fields)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        fields = self._checked_inputs(inputs)
        for stage in self.stages:
            runs = [self._arun(self.wirings[name], fields) for name in stage]
            for written in await asyncio.gather(*runs, return_exceptions=True):  # all are paid for: await all
                if isinstance(written, BaseException):
                    raise written
                fields |= written
        return self._prediction(fields)

    def _run_stage(self, stage: Sequence[str], fields: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What each agent of a stage writes, in the order of their names.

        Threads of our own with the caller's context: DSPy's `ParallelExecutor` would run slow agents twice, turn their
        exceptions into `None`, and, in several threads at once, now and then fail in the set of its progress bars.
        """
        if len(stage) == 1:
            return [self._run(self.wirings[stage[0]], fields)]
        with ThreadPoolExecutor(len(stage), thread_name_prefix="agent") as pool:
            runs = [
                pool.submit(contextvars.copy_context().run, self._run, self.wirings[name], fields) for name in stage
            ]
        return [run.result() for run in runs]

    def _run(self, wiring: Wiring, fields: Mapping[str, Any]) -> dict[str, Any]:
        module = getattr(self, wiring.agent)
        return _written(wiring, module(**_read(wiring, fields)))

    async def _arun(self, wiring: Wiring, fields: Mapping[str, Any]) -> dict[str, Any]:
        module, inputs = getattr(self, wiring.agent), _read(wiring, fields)
        if hasattr(module, "aforward"):
            return _written(wiring, await module.acall(**inputs))
        return _written(wiring, await asyncio.to_thread(module, **inputs))

    def _checked_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if set(inputs) != set(self.inputs):
            raise GraphError(
                f"The graph was called with the inputs {sorted(inputs)}, expected {sorted(self.inputs)}. Pass exactly "
                "these; examples do so after `with_inputs(...)`."
            )
        return dict(inputs)

    def _prediction(self, fields: Mapping[str, Any]) -> dspy.Prediction:
        return dspy.Prediction(**{name: fields[name] for name in self.outputs})

    def _check_modules(self, agents: Mapping[str, Agent]) -> None:
        owners: dict[int, str] = {}
        taken = {*dir(self), "wirings", "stages"}
        for name, agent in agents.items():
            if not name.isidentifier() or name in taken:
                raise GraphError(
                    f"The agent name {name!r} cannot be an attribute of the graph. Choose another one: letters, digits "
                    "and `_`, and no name that every `dspy.Module` has."
                )
            if not isinstance(agent.module, dspy.Module):
                raise GraphError(f"Agent {name!r} is {agent.module!r}, expected a `dspy.Module`.")
            for part in {id(agent.module), *map(id, agent.module.predictors())}:
                if part in owners:
                    raise GraphError(
                        f"Agents {owners[part]!r} and {name!r} share a predictor, so their steps could not be told "
                        "apart. Give each agent a module of its own, e.g. `module.deepcopy()`."
                    )
                owners[part] = name


# Building a graph


def _wiring(name: str, agent: Agent) -> Wiring:
    inputs, outputs = _fields_of(agent.module)
    if not (inputs or agent.reads) or not (outputs or agent.writes):
        raise GraphError(
            f"What agent {name!r} ({type(agent.module).__name__}) reads and writes is not known: it has no `signature` "
            "with inputs and outputs. Say it: `Agent(module, reads={'input': 'field'}, writes={'output': 'field'})`."
        )
    has_signature = bool(inputs or outputs)
    for given, known in ((agent.reads, inputs), (agent.writes, {*outputs, "reasoning"})):
        if has_signature and (unknown := sorted(set(given) - set(known))):
            raise GraphError(
                f"Agent {name!r} renames {unknown}; its module has the inputs {list(inputs)} and the outputs "
                f"{list(outputs)}. Correct `reads` or `writes`."
            )
    reads = {item: item for item in inputs} | dict(agent.reads)
    writes = {item: item for item in outputs} | dict(agent.writes)
    return Wiring(name, agent.role, reads, writes)


def _fields_of(module: dspy.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Inputs and outputs of a module's signature; both empty if it does not have one."""
    is_reasoning = isinstance(module, dspy.ChainOfThought)
    signature = module.predict.signature if is_reasoning else getattr(module, "signature", None)
    if not (isinstance(signature, type) and issubclass(signature, dspy.Signature)):
        return (), ()
    outputs = tuple(name for name in signature.output_fields if not (is_reasoning and name == "reasoning"))
    return tuple(signature.input_fields), outputs


def _checked_stages(
    inputs: Sequence[str], outputs: Sequence[str], wirings: Mapping[str, Wiring]
) -> tuple[tuple[str, ...], ...]:
    """The agents in topological order; those of one stage do not depend on each other."""
    writers = _writers(inputs, wirings)
    _check_fields(inputs, outputs, wirings, writers)
    stages = _stages(wirings, writers)
    _check_ends(inputs, outputs, wirings, writers)
    return stages


def _writers(inputs: Sequence[str], wirings: Mapping[str, Wiring]) -> dict[str, str]:
    """Field to the one agent that writes it."""
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
    known = {*inputs, *writers}
    for name, wiring in wirings.items():
        if unknown := sorted(set(wiring.reads.values()) - known):
            raise GraphError(
                f"Agent {name!r} reads {unknown}, which nobody writes; there are {sorted(known)}. Correct the name, or "
                "map it with `reads=`."
            )
    if missing := sorted(set(outputs) - set(writers)):
        raise GraphError(
            f"No agent writes the outputs {missing}; written are {sorted(writers)}. Correct the graph's signature."
        )


def _stages(wirings: Mapping[str, Wiring], writers: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    sorter = TopologicalSorter(
        {name: {writers[item] for item in wiring.reads.values() if item in writers} for name, wiring in wirings.items()}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        raise GraphError(
            f"The agents {' -> '.join(error.args[1])} wait for each other. Let one of them read something else: each "
            "agent of a graph runs once, and a loop belongs inside one agent's module."
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
    needed, queue = set(outputs), list(outputs)
    while queue:
        writer = writers.get(queue.pop())
        fresh = set(wirings[writer].reads.values()) - needed if writer else set()
        needed |= fresh
        queue.extend(fresh)
    for name, wiring in wirings.items():
        if needed.isdisjoint(wiring.writes.values()):
            raise GraphError(
                f"Nothing that agent {name!r} writes leads to the outputs {list(outputs)}. Let an agent read one of "
                f"{sorted(wiring.writes.values())}, or leave {name!r} out: its LM calls would be paid for nothing."
            )
    if unread := sorted(set(inputs) - needed):
        raise GraphError(f"The inputs {unread} reach no agent. Let one read them, or take them out of the signature.")


def _edges(wirings: Mapping[str, Wiring]) -> tuple[Edge, ...]:
    return tuple(
        Edge(source, target, item)
        for source, writing in wirings.items()
        for target, reading in wirings.items()
        for item in writing.writes.values()
        if item in reading.reads.values()
    )


# Running one agent


def _read(wiring: Wiring, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[item] for name, item in wiring.reads.items()}


def _written(wiring: Wiring, result: Any) -> dict[str, Any]:
    if missing := [name for name in wiring.writes if not hasattr(result, name)]:
        raise GraphError(
            f"Agent {wiring.agent!r} returned {type(result).__name__} without {missing}. Return a `dspy.Prediction` "
            f"with the fields {list(wiring.writes)}, or correct the agent's `writes`."
        )
    return {item: getattr(result, name) for name, item in wiring.writes.items()}


# What flowed in a run

_SHORTEST_QUOTE = 8
"""Characters from which a text is looked for inside longer ones. A shorter one, `no` or `42`, is found in many texts by
chance, so it counts only as a whole value."""

_LONGEST_NOTE = 300
"""Characters; a picture is no archive."""


def data_flow(trajectory: Trajectory) -> FlowChart:
    """What flowed between the steps of a run: a node per step, and a flow where outputs appear in later inputs.

    An output appears in an input if they are equal, or if its text is part of a text there (in lists and dicts, too).
    This sees copies, not causes: what a program rewords or counts in between leaves no trace, and a value that two
    earlier steps both wrote flows from both.

    Args:
        trajectory: Any recorded run, of an `AgentGraph` or not.
    """
    counts = Counter(step.predictor for step in trajectory.steps)
    nodes = tuple(_step_node(step, counts[step.predictor] > 1) for step in trajectory.steps)
    flows = [
        Flow(source, target, written if written == read else f"{written} -> {read}")
        for target, reader in enumerate(trajectory.steps)
        for source, writer in enumerate(trajectory.steps)
        if writer.ended < reader.started  # what ran at the same time cannot have been read
        for written, value in (writer.outputs or {}).items()
        for read, given in reader.inputs.items()
        if _appears(value, given)
    ]
    return FlowChart(nodes, tuple(flows))


def _step_node(step: Step, is_repeated: bool) -> Node:
    label = f"{step.predictor} #{step.occurrence + 1}" if is_repeated else step.predictor
    if step.failure is not None:
        return Node(label, "failed", _shortened(f"{step.failure.kind}: {step.failure.message}"))
    note = "\n".join(f"{name}: {value}" for name, value in readable(step.outputs or {}).items())
    return Node(label, step.source, _shortened(note))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_NOTE else text[:_LONGEST_NOTE] + "..."


def _appears(value: Any, given: Any) -> bool:
    if value in (None, "", [], {}):
        return False
    if canonical(value) == canonical(given):
        return True
    if isinstance(given, Mapping):
        return any(_appears(value, item) for item in given.values())
    if isinstance(given, list | tuple):
        return any(_appears(value, item) for item in given)
    if not isinstance(value, str) or not isinstance(given, str) or not value.strip():
        return False
    text = value.strip()
    return text == given.strip() or (len(text) >= _SHORTEST_QUOTE and text in given)


def _graph_chart(graph: AgentGraph) -> FlowChart:
    inputs, agents = list(graph.inputs), list(graph.wirings)
    nodes = [Node(name, "input") for name in inputs]
    nodes += [Node(name, "agent", wiring.role) for name, wiring in graph.wirings.items()]
    nodes += [Node(name, "output") for name in graph.outputs]
    first_agent, first_output = len(inputs), len(inputs) + len(agents)
    flows = [
        Flow(inputs.index(item), first_agent + agents.index(name), item)
        for name, wiring in graph.wirings.items()
        for item in wiring.reads.values()
        if item in inputs
    ]
    flows += [Flow(first_agent + agents.index(s), first_agent + agents.index(t), item) for s, t, item in graph.edges]
    flows += [
        Flow(first_agent + agents.index(name), first_output + graph.outputs.index(item), item)
        for name, wiring in graph.wirings.items()
        for item in wiring.writes.values()
        if item in graph.outputs
    ]
    return FlowChart(tuple(nodes), tuple(flows))
