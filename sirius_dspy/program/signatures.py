"""What a predictor asks for, and what identifies it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import dspy

from sirius_dspy.dspy_internals import field_role
from sirius_dspy.graph.agents import AgentGraph
from sirius_dspy.program.class_cache import cached_by_class
from sirius_dspy.trajectory import Values, digest, from_plain


def signature_of(predictor: dspy.Predict) -> type[dspy.Signature]:
    """A predictor's signature; DSPy types it as optional, though a built predictor always has one."""
    return cast("type[dspy.Signature]", predictor.signature)


def program_fingerprint(program: dspy.Module) -> str:
    """Identify a program by what its agents are asked and who reads whom in its graphs, not by weights or demos."""
    signatures = {
        name: [
            predictor.signature.instructions,
            *(_describe_field(name, info) for name, info in predictor.signature.fields.items()),
        ]
        for name, predictor in program.named_predictors()
    }
    modules = program.named_sub_modules()
    graphs = {name: _wirings(module) for name, module in modules if isinstance(module, AgentGraph)}
    return digest({"class": type(program).__qualname__, "signatures": signatures, "graphs": graphs})


def _wirings(graph: AgentGraph) -> dict[str, list[dict[str, str]]]:
    return {name: [dict(wiring.reads), dict(wiring.writes)] for name, wiring in graph.wirings.items()}


def restore_values(values: Values, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Restore a step's values from their plain form.

    Args:
        values: Field name to plain value.
        fields: The signature's fields; their types tell the classes of the values. Names without a field are restored
            without that help.

    Raises:
        UnreadableValueError: A value cannot be restored.
    """
    return {
        name: from_plain(value, fields[name].annotation if name in fields else Any) for name, value in values.items()
    }


@cached_by_class
def signature_digest(signature: type[dspy.Signature]) -> str:
    """Identify what a signature asks for: instructions, and of each field its name, type, description and side."""
    fields = [_describe_field(name, info) for name, info in signature.fields.items()]
    return digest([signature.instructions, fields])


def _describe_field(name: str, info: Any) -> list[str]:
    """What tells one field of a signature from another."""
    extra = info.json_schema_extra or {}
    return [name, str(info.annotation), str(extra.get("desc", "")), field_role(info)]
