"""What counts in a description: code wherever it is reached, and what objects and LMs were made with."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import sys
from typing import Any, Literal, NamedTuple

import dspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_dspy import CriticAugmenter, Curator, RepairDemos
from sirius_dspy.identity.describe import describe
from sirius_dspy.identity.parts import find_changes
from sirius_dspy.identity.source_code import outline
from sirius_dspy.repair.leak import LeakGuard
from sirius_dspy.testing import ToyLM
from sirius_dspy.training.trainers import ProviderTrainer
from sirius_dspy.trajectory import digest
from tests.identity_help import Holder, closed, differing, function, graded
from tests.toy import ADAPTER


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "def metric(e, p, trace=None):\n    return e == p\n",
            "def metric(e,p,trace = None): return (e ==\n  p) # why",
        ),
        (
            "def metric(e, p):\n    return 1.0\n",
            'def metric(e, p):\n    """It says so."""\n\n    # and this\n    return 1.0\n',
        ),
        ("metric = lambda e, p: [1, 2]\n", "metric = (\n    lambda e, p: [\n        1,\n        2,\n    ]\n)\n"),
        ("def metric(e, p):\n    return 'a'\n", 'def metric(e, p):\n    return "a"\n'),
    ],
)
def test_comments_formatting_and_docstrings_do_not_count(one, other):
    assert describe(function(one)) == describe(function(other))


EVERYTHING = """
@functools.wraps(print)
async def metric(a, /, b: int = 1.0, *args, c=None, **kw) -> "str":
    x = {**kw, 'k': b"raw", 1: True}
    if (n := len(x)) > 2 and a is not ...:
        return f"How {_list([f'{o.n} {o.t!r}s' for o in a])} and {n:>{c}.2f} {{}} {'q'!r}" "tail"
    match a:
        case [1, *rest] if rest:
            pass
        case {"k": v, **more} | None:
            n = v
        case Point(x=0): ...
    try:
        del a[1:2, ::3]
    except (ValueError, TypeError) as e:
        raise X from e
    async with a as b, c:
        assert b, "no"
    return [i async for i in a if await i] or {*a} or {i: j for i in j} or (lambda q, *r: -1j + 2**3 @ q // 4)
"""


def test_the_description_of_code_is_the_same_in_every_version_of_python():
    """The digest was the same in Python 3.11, 3.12 and 3.13, so a run can be resumed with another version."""
    assert digest(outline(ast.parse(EVERYTHING)))[:16] == "479ba1b015098017"


class Pair(NamedTuple):
    left: int
    right: int = 2

    def total(self):
        return self.left + self.right


class Renamed(NamedTuple):
    left: int
    wrong: int = 2

    def total(self):
        return self.left + self.wrong


def test_what_python_writes_for_a_named_tuple_does_not_count():
    described = describe(lambda e, p: Pair(e, p).total())["uses"]["Pair"]
    assert described.keys() == {"name", "_field_defaults", "_fields", "total", "bases"}
    assert describe(lambda e, p: Renamed(e, p).total())["uses"]["Renamed"]["_fields"] == ["left", "wrong"]


BODIES = st.sampled_from(["e == p", "e != p", "1.0", "2.0", "len(p)", "p.answer", "p.answers", "e in {'a', 'b'}", "-1"])


@settings(max_examples=60, deadline=None)
@given(BODIES, BODIES, st.booleans(), st.sampled_from(["", "# a comment\n", "\n\n"]))
def test_code_counts_and_nothing_else_of_a_file(one, other, is_lambda, noise):
    made = [
        function(f"{noise if number else ''}metric = lambda e, p: {body}\n")
        if is_lambda
        else function(f"{noise if number else ''}def metric(e, p):\n    {noise.strip()}\n    return ({body})\n")
        for number, body in enumerate((one, other))
    ]
    assert (describe(made[0]) == describe(made[1])) == (one == other)


def test_lambdas_on_one_line_are_told_apart():
    one, other = lambda e, p: 1.0, lambda e, p: 2.0
    nested = [lambda: (lambda: 1)(), lambda: (lambda: 2)()]
    assert differing(one, other) == ["the code of `it`"]
    assert differing(*nested) == ["the code of `it`"]


def test_code_without_a_source_counts_by_its_instructions():
    def made(text: str) -> Any:
        space: dict[str, Any] = {}
        exec(text, space)
        return space["metric"]

    first = made("def metric(e, p):\n    'A docstring.'\n    return e == p and p in {'a', 'b'}\n")
    assert describe(first) == describe(made("\n\ndef metric(e, p):\n    return e == p and p in {'b', 'a'}\n"))
    assert differing(first, made("def metric(e, p):\n    return e == p and p in {'a', 'c'}\n"))


def test_a_file_that_was_edited_after_it_was_loaded_is_not_taken_for_what_runs():
    metric = function("def metric(e, p):\n    return 1.0\n")
    import linecache

    before, name = describe(metric), metric.__code__.co_filename
    size, when, lines, path = linecache.cache[name]
    linecache.cache[name] = (size, when, [lines[0], "    return 2.0\n"], path)
    assert "2.0" not in json.dumps(describe(metric))
    assert describe(metric)["code"] != describe(function("def metric(e, p):\n    return 2.0\n"))["code"]
    assert before["function"] == "metric"


def test_globals_that_a_function_uses_count_also_through_others():
    source = "def close(a):\n    return a < LIMIT\n\ndef metric(e, p):\n    return close(p)\n"
    before = function(source, LIMIT=1, UNUSED=1)
    assert differing(before, function(source, LIMIT=1, UNUSED=2)) == []
    assert differing(before, function(source, LIMIT=2, UNUSED=1)) == ["`it.close.LIMIT`: 1 -> 2"]
    assert differing(before, function(source.replace("a <", "a >"), LIMIT=1)) == ["the code of `it.close`"]


HELPERS = "WEIGHT = 1\n\ndef helper(x):\n    return x + WEIGHT\n"


@pytest.mark.parametrize(
    "body",
    [
        "from own_helpers import helper\n    return helper(1)",
        "import own_helpers as own\n    return own.helper(1)",
        "return getattr(own_helpers, 'helper')(1)",
        "own = own_helpers\n    return own.helper(1)",
        "return own_helpers.helper(1)",
    ],
)
def test_modules_of_the_user_s_own_count_wherever_they_are_imported(body, tmp_path, monkeypatch):
    def described(helpers):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "own_helpers.py").write_text(helpers, encoding="utf-8")
        with monkeypatch.context() as patched:
            patched.syspath_prepend(str(folder))
            patched.delitem(sys.modules, "own_helpers", raising=False)
            module = importlib.import_module("own_helpers")
            return describe(function(f"def metric(e, p):\n    {body}\n", own_helpers=module))

    before = described(HELPERS)
    assert find_changes(before, described("# Why.\n" + HELPERS.replace("x):", "x ):"))) == []
    assert find_changes(before, described(HELPERS.replace("x +", "x -")))
    assert find_changes(before, described(HELPERS.replace("WEIGHT = 1", "WEIGHT = 2")))


CLASSES = """
import collections, functools

class Kind(type):
    def weight(cls):
        return 1

class Metric(metaclass=Kind):
    def score(self, weight, e, p):
        return weight * type(self).weight() * chosen(p) * KNOWN["x"]
    __call__ = functools.partialmethod(score, 10)

@functools.singledispatch
def chosen(p):
    return 100

@chosen.register
def _(p: int):
    return 1000

KNOWN = collections.defaultdict(lambda: 10000)
"""


@pytest.mark.parametrize("number", ["return 1\n", "10)", "100\n", "1000\n", "10000)"])
def test_code_that_is_reached_in_uncommon_ways_counts(number):
    changed = CLASSES.replace(number, number.replace("1", "2", 1), 1)
    assert changed != CLASSES
    assert differing(function(CLASSES, "Metric")(), function(changed, "Metric")())
    assert not differing(function(CLASSES, "Metric")(), function("\n" + CLASSES, "Metric")())


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (closed(1.0), closed(2.0), "`it.closure.value`: 1.0 -> 2.0"),
        (closed({"a": [1]}), closed({"a": [2]}), "`it.closure.value.a[0]`: 1 -> 2"),
        (functools.partial(graded, weight=1), functools.partial(graded, weight=2), "`it.keywords.weight`: 1 -> 2"),
        (functools.partial(graded, 1), functools.partial(graded, 2), "`it.args[0]`: 1 -> 2"),
        (Holder(1.0), Holder(2.0), "`it._value`: 1.0 -> 2.0"),
        (Holder({1, 2}), Holder({1, 3}), "`it._value[1]`: 2 -> 3"),
        (Holder({1: "a"}), Holder({"1": "a"}), "`it._value.1`: nothing -> 'a'"),
        (Holder(np.arange(9)), Holder(np.arange(9) * 2), "`it._value.content`"),
        (Holder(True), Holder(1), "`it._value`: True -> 1"),
        (Holder(1.0).__call__, Holder(2.0).__call__, "`it.of._value`: 1.0 -> 2.0"),
        (Holder(), closed(1.0), "`it`: 'Holder' -> '<lambda>'"),
        (CriticAugmenter(), None, "`it`: sirius_dspy.repair.critic.CriticAugmenter -> None"),
        (CriticAugmenter(guard=LeakGuard()), CriticAugmenter(guard=LeakGuard(r"\bno\b")), "`it.guard.traces`"),
        (CriticAugmenter(ToyLM("a")), CriticAugmenter(ToyLM("b")), "`it.critic.model`: 'a' -> 'b'"),
        (
            CriticAugmenter(demos=RepairDemos(rephrase=[dspy.Example(task="1", text="2", rewritten="3")])),
            CriticAugmenter(demos=RepairDemos(rephrase=[dspy.Example(task="1", text="2", rewritten="4")])),
            "`it.demos.rephrase[0].rewritten`: '3' -> '4'",
        ),
        (Curator(), Curator(max_rows=7), "`it.max_rows`: None -> 7"),
        (ProviderTrainer({"n_epochs": 1}), ProviderTrainer({"n_epochs": 2}), "`it.train_kwargs.n_epochs`: 1 -> 2"),
        (ADAPTER, dspy.ChatAdapter(), "`it.use_json_adapter_fallback`: False -> True"),
        (dspy.Example(token="a"), dspy.Example(token="b"), "`it.token`: 'a' -> 'b'"),
        (Literal["a"], Literal["b"], "`it.type`"),
    ],
)
def test_what_an_object_was_made_with_counts_and_is_named(before, now, said):
    assert any(said in line for line in differing(before, now)), differing(before, now)
    assert differing(before, before) == []


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.1},
        {"max_tokens": 9},
        {"top_p": 0.5},
        {"stop": ["x"]},
        {"stop_token_ids": [7]},
        {"keywords": ["x"]},
        {"train_kwargs": {"n": 1}},
        {"finetuning_model": "y"},
        {"model": "openai/y"},
        {"model_type": "text"},
        {"api_base": "https://b.example/v1"},
    ],
)
def test_the_settings_of_an_lm_count(change):
    known = {"model": "openai/x", "api_base": "https://a.example/v1"}
    lines = differing(dspy.LM(**known), dspy.LM(**{**known, **change}))
    assert len(lines) == 1
    assert next(iter(change)) in lines[0]


@pytest.mark.parametrize(
    "change",
    [
        {"api_key": "planted-secret"},
        {"aws_session_name": "planted-secret"},
        {"organization": "planted-secret"},
        {"azure_ad_token_provider": print},
        {"cache": False},
        {"num_retries": 9},
        {"timeout": 3},
        {"extra_headers": {"X-Custom": "planted-secret"}},
        {"api_base": "http://127.0.0.1:8123/v1"},
    ],
)
def test_who_pays_and_how_long_is_waited_does_not_count(change):
    changed = describe(dspy.LM("openai/x", **change))
    assert find_changes(describe(dspy.LM("openai/x")), changed) == []
    assert "planted-secret" not in json.dumps(changed)
