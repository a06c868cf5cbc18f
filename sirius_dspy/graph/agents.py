"""Agents that read each other's fields, as one `dspy.Module`.

An edge is never declared: agent B follows agent A because B reads a field that A writes. So the edges cannot contradict
what the agents are really given.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import dspy
from dspy.signatures import ensure_signature

from sirius_dspy.errors import GraphError
from sirius_dspy.graph.chart import FlowChart
from sirius_dspy.graph.wiring import (
    Agent,
    Edge,
    Wiring,
    collect_writes,
    connect,
    draw_graph,
    find_edges,
    plan_stages,
    read_fields,
)


class AgentGraph(dspy.Module):
    """A directed acyclic graph of agents.

    The agents become attributes, so their predictors are called `<agent>`, or `<agent>.<name in the module>`. Copying,
    saving, loading and setting LMs work as for any module, and a run can be recorded and replayed.

    Args:
        signature: Inputs and outputs of the whole graph, e.g. `"question -> answer"`.
        agents: Name to agent, or to its module alone.

    Raises:
        GraphError: The agents do not form a graph: there is a cycle, a field that no agent or more than one writes, an
            agent or an input that leads to no output, or a name that cannot be an attribute.

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
        self.wirings = {name: connect(name, agent) for name, agent in given.items()}
        self.stages = plan_stages(self.inputs, self.outputs, self.wirings)
        for name, agent in given.items():
            setattr(self, name, agent.module)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The fields that the caller passes."""
        return tuple(self.signature.input_fields)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The fields of the prediction."""
        return tuple(self.signature.output_fields)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Who reads which field of whom, in the order in which the agents were given."""
        return find_edges(self.wirings)

    @property
    def chart(self) -> FlowChart:
        """A chart of the graph with its inputs and outputs, for `to_mermaid` and `to_svg`."""
        return draw_graph(self.inputs, self.outputs, self.wirings)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Run every agent once; the prediction has the outputs of the signature.

        Raises:
            GraphError: The inputs are not those of the signature, or a module did not return a field that it writes.
        """
        fields = self._check_inputs(inputs)
        for stage in self.stages:
            for outputs in self._run_stage(stage, fields):
                fields |= outputs
        return self._predict(fields)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        fields = self._check_inputs(inputs)
        for stage in self.stages:
            runs = [self._arun(self.wirings[name], fields) for name in stage]
            for outputs in await asyncio.gather(*runs, return_exceptions=True):  # all are paid for: await all
                if isinstance(outputs, BaseException):
                    raise outputs
                fields |= outputs
        return self._predict(fields)

    def _run_stage(self, stage: Sequence[str], fields: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what each agent of a stage writes, in the order of their names.

        The threads have the caller's context. DSPy's `ParallelExecutor` would run slow agents twice, turn their
        exceptions into `None`, and, in several threads at once, sometimes fail in the set of its progress bars.
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
        return collect_writes(wiring, module(**read_fields(wiring, fields)))

    async def _arun(self, wiring: Wiring, fields: Mapping[str, Any]) -> dict[str, Any]:
        module, inputs = getattr(self, wiring.agent), read_fields(wiring, fields)
        if hasattr(module, "aforward"):
            return collect_writes(wiring, await module.acall(**inputs))
        return collect_writes(wiring, await asyncio.to_thread(module, **inputs))

    def _check_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if set(inputs) != set(self.inputs):
            raise GraphError(
                f"The graph was called with the inputs {sorted(inputs)}, expected {sorted(self.inputs)}. Pass exactly "
                "these; examples pass them if they are marked with `with_inputs(...)`."
            )
        return dict(inputs)

    def _predict(self, fields: Mapping[str, Any]) -> dspy.Prediction:
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
                if (owner := owners.setdefault(part, name)) != name:
                    raise GraphError(
                        f"Agents {owner!r} and {name!r} share a predictor, so their steps could not be told apart. "
                        "Give each agent a module of its own, e.g. `module.deepcopy()`."
                    )
