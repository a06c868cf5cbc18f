"""Stores signatures and demonstrations of a program's predictors as plain values.

The annotation of a demonstration's field restores the type of its value. The annotation belongs to the program, which
is the caller's code; the file names no class.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
from dspy.adapters.types.base_type import Type
from pydantic import BaseModel, Field, TypeAdapter

from sirius_dspy.checkpoint.files import read_json
from sirius_dspy.checkpoint.manifest import Name, Strict, validate
from sirius_dspy.errors import CheckpointError
from sirius_dspy.program import predictor_names, signature_of

MAX_STATE_BYTES = 256 << 20
"""Large, because demonstrations may hold images."""


class FieldState(Strict):
    """The description of a field in prompts."""

    prefix: str
    description: str


class SignatureState(Strict):
    """The description of a task in prompts."""

    instructions: str
    fields: list[FieldState]


class DemoState(Strict):
    """One demonstration."""

    values: dict[Name, Any]
    """Values that JSON represents exactly."""
    typed: dict[Name, Any] = Field(default={})
    """Values that the annotation of their field restores."""
    inputs: list[Name] | None = None


class PredictorState(Strict):
    """One predictor."""

    signature: SignatureState
    demos: list[DemoState] = Field(default=[])
    criteria: dict[Name, Any] = Field(default={})
    """DSPy's settings of decision fields."""


class ProgramState(Strict):
    """All predictors, by name."""

    predictors: dict[Name, PredictorState]


# Writing


def store_program(program: dspy.Module) -> dict[str, Any]:
    """Return the state of a program's predictors as JSON.

    Raises:
        CheckpointError: A demonstration holds a value that cannot be stored, or a part of the program is code.
    """
    _check_parameters(program)
    predictors = {name: _store_predictor(name, part) for name, part in predictor_names(program).items()}
    plain = {"predictors": predictors}
    validate(ProgramState, plain, "The program's state")
    return plain


def _check_parameters(program: dspy.Module) -> None:
    for name, part in program.named_parameters():
        if not isinstance(part, dspy.Predict | dspy.Retrieve):  # a retriever's number of passages is in the code
            raise CheckpointError(
                f"{name!r} is a {type(part).__name__}, whose state is code and not data. Save the program without it."
            )


def _store_predictor(name: str, predictor: dspy.Predict) -> dict[str, Any]:
    signature = signature_of(predictor)
    return {
        "signature": signature.dump_state(),
        "demos": [_store_demo(f"{name}.demos[{n}]", demo, signature) for n, demo in enumerate(predictor.demos)],
        "criteria": _check_json(f"{name}.fields", copy.deepcopy(getattr(predictor, "fields", {}))),
    }


def _store_demo(place: str, demo: Any, signature: type[dspy.Signature]) -> dict[str, Any]:
    if not isinstance(demo, Mapping | dspy.Example):
        raise CheckpointError(f"{place} is a {type(demo).__name__}, expected a `dspy.Example`. Remove it.")
    values: dict[str, Any] = {}
    typed: dict[str, Any] = {}
    for name, value in dict(demo.items()).items():
        if _is_plain(value):
            values[name] = value
        elif name in signature.fields:  # other values are in no prompt
            typed[name] = _encode(f"{place}[{name!r}]", value, signature.fields[name].annotation)
    inputs = getattr(demo, "_input_keys", None)
    return {"values": values, "typed": typed, "inputs": None if inputs is None else sorted(inputs)}


def _encode(place: str, value: Any, annotation: Any) -> Any:
    """Return JSON that the annotation reads back as an equal value."""
    for plain in _candidates(value, annotation):
        try:
            if _same(_read(plain, annotation), value):
                return _check_json(place, plain)
        except Exception:  # the annotation is the user's, with validators that may raise anything
            continue
    raise CheckpointError(
        f"{place} is the {type(value).__name__} {repr(value)[:80]}, which does not read back as the same value through "
        f"its field's annotation {annotation!r}. Annotate the field with the value's type, or store a text or a number."
    )


def _candidates(value: Any, annotation: Any) -> Iterator[Any]:
    for write in (
        lambda: TypeAdapter(annotation).dump_python(value, mode="json", warnings=False),
        # Under the names that models read, without the fields that they compute.
        lambda: TypeAdapter(annotation).dump_python(value, mode="json", by_alias=True, round_trip=True, warnings=False),
        lambda: _raw(value),
    ):
        try:
            yield write()
        except Exception:  # as above
            continue


def _raw(value: Any) -> Any:
    """Return the fields of DSPy's types, which otherwise serialize themselves as parts of a prompt."""
    if isinstance(value, Type):
        return {name: _raw(item) for name, item in vars(value).items()}
    if isinstance(value, list | tuple):
        return [_raw(item) for item in value]
    if isinstance(value, dict):
        return {name: _raw(item) for name, item in value.items()}
    return value


def _is_plain(value: Any) -> bool:
    """Return whether a value survives JSON unchanged."""
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(name) is str and _is_plain(item) for name, item in value.items())
    if type(value) is float:
        return value - value == 0  # neither NaN nor infinite
    return value is None or type(value) in (str, int, bool)


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and have the same types at every level."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, set | frozenset):
        return sorted(map(repr, one)) == sorted(map(repr, other))
    if isinstance(one, BaseModel) or dataclasses.is_dataclass(one):
        return _same(vars(one), vars(other))
    return bool(one == other)


def _check_json(place: str, plain: Any) -> Any:
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{place} cannot be stored: {error}. Use texts and numbers.") from error
    return plain


# Reading


def read_program(path: Path) -> ProgramState:
    """Read the file that `store_program` was written to.

    Raises:
        CheckpointError: It is not such a file.
    """
    return validate(ProgramState, read_json(path, MAX_STATE_BYTES), f"The program's state {str(path)!r}")


@contextmanager
def restore_on_error(program: dspy.Module) -> Iterator[None]:
    """Restore the predictors if the block fails."""
    parts = list(predictor_names(program).values())
    before = [dict(vars(part)) for part in parts]
    try:
        yield
    except BaseException:
        for part, attributes in zip(parts, before, strict=True):
            vars(part).clear()
            vars(part).update(attributes)
        raise


def restore_program(program: dspy.Module, state: ProgramState) -> None:
    """Restore the stored state of a program's predictors.

    Raises:
        CheckpointError: The program has other predictors or fields, or a demonstration does not fit them.
    """
    predictors = predictor_names(program)
    expected, actual = sorted(state.predictors), sorted(predictors)
    if expected != actual:
        raise CheckpointError(
            f"The checkpoint has the predictors {expected}, the program has {actual}. Pass the program that was saved."
        )
    for name, predictor in predictors.items():
        _restore_predictor(name, predictor, state.predictors[name])


def _restore_predictor(name: str, predictor: dspy.Predict, state: PredictorState) -> None:
    signature = signature_of(predictor)
    if len(state.signature.fields) != len(signature.fields):
        raise CheckpointError(
            f"Predictor {name!r} has {len(signature.fields)} fields, but {len(state.signature.fields)} in the "
            "checkpoint: the signatures differ. Pass the program that was saved."
        )
    plain = {
        "signature": state.signature.model_dump(),
        "demos": [_restore_demo(f"{name}.demos[{n}]", demo, signature) for n, demo in enumerate(state.demos)],
        "fields": state.criteria,
        "traces": [],
        "train": [],
        "lm": None,
    }
    try:
        predictor.load_state(plain)
    except Exception as error:  # DSPy checks the settings of decision fields here
        raise CheckpointError(f"Predictor {name!r} does not take its state: {str(error)[:300]}") from error


def _restore_demo(place: str, state: DemoState, signature: type[dspy.Signature]) -> dspy.Example:
    values = dict(state.values)
    for name, plain in state.typed.items():
        if name not in signature.fields or name in values:
            raise CheckpointError(f"{place} has a typed value {name!r}, which is not one of its fields.")
        try:
            values[name] = _read(plain, signature.fields[name].annotation)
        except Exception as error:  # as in `_encode`
            raise CheckpointError(f"{place}[{name!r}] does not fit its field: {str(error)[:300]}") from error
    demo = dspy.Example(values)
    return demo if state.inputs is None else demo.with_inputs(*state.inputs)


def _read(plain: Any, annotation: Any) -> Any:
    return TypeAdapter(annotation).validate_json(json.dumps(plain))
