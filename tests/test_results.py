"""What a compile did: a frozen record, a mapping for DSPy and MLflow, and JSON that is read back as it was."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sirius_dspy import Collect, CompileResult, IterationResult, ProviderTrainer, load, save
from sirius_dspy.errors import ResultError
from sirius_dspy.optimizer.results import AgentResult, RepairResult, UsageResult
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.running.standing import Standing
from tests.toy import ADAPTER, Doubling, examples, optimizer, student, without_time

COUNTS = st.integers(0, 10**6)
FLOATS = st.floats(-1e6, 1e6)
SECONDS = st.floats(0, 1e6)
NAMES = st.text(max_size=8)


def tables(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(NAMES, values, max_size=3)


def tuples(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3).map(tuple)


USAGES = st.builds(UsageResult, COUNTS, COUNTS, COUNTS, st.none() | SECONDS)
STANDINGS = st.builds(Standing, COUNTS, COUNTS, FLOATS, FLOATS)
AGENTS = st.builds(
    AgentResult,
    rows=COUNTS,
    dropped=tables(COUNTS),
    losses=tuples(st.none() | FLOATS),
    lm=st.none() | NAMES,
    base=st.none() | NAMES,
    seconds=SECONDS,
    usage=USAGES,
)
REPAIRS = st.builds(
    RepairResult,
    tried=COUNTS,
    repaired=COUNTS,
    verdicts=tables(COUNTS),
    by_agent=tables(tables(COUNTS)),
    calls=COUNTS,
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
)
ITERATIONS = st.builds(
    IterationResult,
    iteration=COUNTS,
    score=FLOATS,
    num_val=COUNTS,
    lms=tables(NAMES),
    standing=STANDINGS,
    promoted=tables(st.booleans()),
    metrics=tables(FLOATS),
    agents=tables(AGENTS),
    repair=REPAIRS,
    seconds=tables(SECONDS),
    usage=USAGES,
    stages=tables(USAGES),
    chosen_in_forward=tables(tuples(NAMES)),
)
COMPILES = st.builds(
    CompileResult,
    run=NAMES,
    adapter=NAMES,
    seed=COUNTS,
    threshold=FLOATS,
    agents=tables(tuples(NAMES)),
    run_dir=NAMES,
    library=NAMES,
    iterations=tuples(ITERATIONS),
    ended=st.sampled_from(["finished", "budget", "nothing learned", "unfinished"]),
    reason=NAMES,
    program=NAMES,
    num_train=COUNTS,
    usage=USAGES,
    seconds=SECONDS,
)

ROUND_TRIPS = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
"""The records are large, and the machine may be busy."""

FIRST = IterationResult(0, 0.5, 4, {"a": "lm"}, Standing(4, 0, 2.0, 0.0))
SECOND = IterationResult(
    1,
    0.75,
    4,
    {"a": "lm-1"},
    Standing(4, 0, 3.0, 0.0),
    promoted={"a": True},
    metrics={"val/score": 0.75},
    agents={"a": AgentResult(rows=3, dropped={"cap": 1}, losses=(0.5, None), lm="lm-1", base="lm", seconds=1.5)},
    repair=RepairResult(tried=2, repaired=1, verdicts={"repaired": 1}, by_agent={"a": {"tried": 2, "repaired": 1}}),
    seconds={"train": 1.5},
    stages={"collect": UsageResult(8, 80, 8, 0.01)},
    chosen_in_forward={"a.predict": ("other",)},
)
RESULT = CompileResult("r", "dspy.ChatAdapter", 0, 1.0, {"a": ("a.predict",)}, iterations=(FIRST, SECOND))


@ROUND_TRIPS
@given(COMPILES)
def test_a_result_is_read_back_as_it_was(result):
    again = CompileResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again == result
    assert again.to_dict() == result.to_dict()
    assert (again.best, again.best_iteration, again.best_score) == (
        result.best,
        result.best_iteration,
        result.best_score,
    )


@ROUND_TRIPS
@given(COMPILES)
def test_a_result_is_a_mapping_of_what_it_is_as_json(result):
    assert isinstance(result, Mapping)
    assert dict(result) == result.to_dict()
    assert len(result) == len(list(result)) == len(set(result))
    assert all(key in result for key in result)


def test_keys_are_attributes_and_what_is_below_is_plain():
    assert RESULT["best_score"] == RESULT.best_score == 0.75
    assert RESULT["best_iteration"] == RESULT.best_iteration == 1
    assert RESULT["iterations"][1]["agents"]["a"]["rows"] == RESULT.iterations[1].agents["a"].rows == 3
    assert (type(RESULT["iterations"]), type(RESULT["iterations"][0])) == (list, dict)
    assert RESULT.get("nothing") is None
    with pytest.raises(KeyError, match="to_dict"):  # a method is no key
        RESULT["to_dict"]


@pytest.mark.parametrize("record", [RESULT, FIRST, AgentResult(), RepairResult(), UsageResult()])
def test_a_result_is_frozen(record):
    for field in dataclasses.fields(record):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, field.name, None)


def test_a_result_can_be_copied_and_sent_to_another_process():
    assert copy.deepcopy(RESULT) == RESULT
    assert pickle.loads(pickle.dumps(RESULT)) == RESULT


def records(plain: Any) -> Iterator[tuple[dict[str, Any], type]]:
    """The records within the plain form of `RESULT`, each with its class."""
    yield plain, CompileResult
    yield plain["usage"], UsageResult
    entry = plain["iterations"][1]
    yield entry, IterationResult
    yield entry["agents"]["a"], AgentResult
    yield entry["repair"], RepairResult
    yield entry["standing"], Standing
    yield entry["stages"]["collect"], UsageResult


LEVELS = range(7)
"""Positions in `records`."""


def level(plain: Any, number: int) -> tuple[dict[str, Any], type]:
    return list(records(plain))[number]


@pytest.mark.parametrize("number", LEVELS)
def test_a_field_too_many_is_refused_wherever_it_is(number):
    plain = RESULT.to_dict()
    level(plain, number)[0]["surprise"] = 1
    with pytest.raises(ResultError, match=r"surprise` of CompileResult"):
        CompileResult.from_dict(plain)


def required(kind: type) -> list[str]:
    nothing = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is nothing and field.default_factory is nothing
    ]


@pytest.mark.parametrize(
    ("number", "name"),
    [(number, name) for number in LEVELS for name in required(level(RESULT.to_dict(), number)[1])],
)
def test_a_field_that_is_missing_is_refused_by_name(number, name):
    plain = RESULT.to_dict()
    del level(plain, number)[0][name]
    with pytest.raises(ResultError, match=rf"{name}` of CompileResult"):
        CompileResult.from_dict(plain)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (number, name)
        for number in LEVELS
        for name in level(RESULT.to_dict(), number)[0]
        if not name.startswith("best_")
    ],
)
@pytest.mark.parametrize("wrong", [[["x"]], {"x": {"y": ["z"]}}, True], ids=["list", "table", "flag"])
def test_a_field_of_the_wrong_kind_is_refused_by_name(number, name, wrong):
    plain = RESULT.to_dict()
    level(plain, number)[0][name] = wrong
    with pytest.raises(ResultError, match=rf"{name}\b.*` of CompileResult"):
        CompileResult.from_dict(plain)


def every_place(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from every_place(item, (*path, name))


def test_whatever_stands_where_it_is_a_result_or_a_typed_error():
    num_refused = 0
    for path in every_place(RESULT.to_dict()):
        for wrong in (None, [], {}, 7, -1.5, True, "", "x", [[]], {"a": {}}, math.nan, 10**400, "\ud800"):
            inner = plain = RESULT.to_dict()
            for name in path[:-1]:
                inner = inner[name]
            inner[path[-1]] = wrong
            try:
                assert isinstance(CompileResult.from_dict(plain), CompileResult)
            except ResultError:
                num_refused += 1
    assert num_refused > 0


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("seed", 1.5), ("seed", "1"), ("threshold", "1.0"), ("run", 1), ("ended", "soon"), ("num_train", None)],
)
def test_values_are_not_converted(name, wrong):
    with pytest.raises(ResultError, match=f"`{name}` of CompileResult"):
        CompileResult.from_dict({**RESULT.to_dict(), name: wrong})


@pytest.mark.parametrize(
    ("number", "name", "wrong"),
    [
        (0, "threshold", math.nan),
        (0, "num_train", -1),
        (1, "calls", -1),
        (2, "score", math.inf),
        (2, "num_val", -1),
        (3, "rows", -1),
        (4, "tried", -1),
    ],
)
def test_numbers_that_cannot_be_are_refused(number, name, wrong):
    plain = RESULT.to_dict()
    level(plain, number)[0][name] = wrong
    with pytest.raises(ResultError, match=rf"{name}` of CompileResult"):
        CompileResult.from_dict(plain)


@pytest.mark.parametrize(
    ("name", "wrong"), [("ended", -1), ("broken", -1), ("broken", 10**400), ("total", math.nan), ("lowest", -math.inf)]
)
def test_a_standing_without_a_mean_is_refused(name, wrong):
    plain = RESULT.to_dict()
    level(plain, 5)[0][name] = wrong
    with pytest.raises(ResultError, match=r"standing` of CompileResult"):
        CompileResult.from_dict(plain)


@pytest.mark.parametrize(("name", "wrong"), [("best_score", 0.5), ("best_iteration", 0), ("best_iteration", None)])
def test_a_best_iteration_that_is_not_the_best_is_refused(name, wrong):
    with pytest.raises(ResultError, match=f"`{name}` of CompileResult is {wrong!r}, expected"):
        CompileResult.from_dict({**RESULT.to_dict(), name: wrong})


@pytest.mark.parametrize("value", [object(), {1}, b"bytes"])
def test_what_json_does_not_have_is_refused(value):
    with pytest.raises(ResultError, match="JSON does not have"):
        CompileResult.from_dict({**RESULT.to_dict(), "reason": value})


@pytest.mark.parametrize("data", [None, [], "text", 1, [1]])
def test_what_is_no_table_is_refused(data):
    for kind in (CompileResult, IterationResult, UsageResult):
        with pytest.raises(ResultError, match=kind.__name__):
            kind.from_dict(data)


def test_of_equal_iterations_the_least_trained_is_the_best():
    same = dataclasses.replace(SECOND, iteration=2)
    assert dataclasses.replace(RESULT, iterations=(FIRST, SECOND, same)).best is SECOND
    nothing = dataclasses.replace(RESULT, iterations=())
    assert (nothing.best, nothing.best_score, nothing.best_iteration, nothing.best_lms) == (None, None, None, {})


def test_a_compile_writes_what_it_returns(tmp_path):
    made = optimizer(tmp_path, iterations=1, augmenter=None, collect=Collect(samples=1))
    with dspy.context(adapter=ADAPTER):
        result = made.compile(student(), trainset=examples(), valset=examples()).detailed_results
    assert RunDir(tmp_path).results() == result
    assert CompileResult.from_dict(result) == result
    assert (result.ended, result.best_score, len(result.iterations)) == ("finished", 0.5, 2)


class Diverging(ProviderTrainer):
    """Trains, and reports a last loss that is no number."""

    def train(self, request):
        trained = super().train(request)
        request.on_progress(9, 9, math.nan)
        return trained


def test_a_loss_that_is_no_number_is_none_and_the_compile_can_be_resumed_and_saved(tmp_path):
    def compiled_by(trainer, iterations):
        made = optimizer(
            tmp_path / "run", iterations=iterations, augmenter=None, collect=Collect(samples=1), trainer=trainer
        )
        return made.compile(student(), trainset=examples(), valset=examples())

    with dspy.context(adapter=ADAPTER):
        first = compiled_by(Diverging(), 1)
        again = compiled_by(Diverging(), 1)
        loaded = load(save(first, tmp_path / "checkpoint"), program=Doubling)
    entry = first.detailed_results.iterations[1]
    assert entry.agents["doubler"].losses[-1] is None
    assert "loss/doubler" not in entry.metrics
    assert without_time(again.detailed_results) == without_time(first.detailed_results)
    assert loaded.detailed_results.iterations == first.detailed_results.iterations
