"""Two compiles are the same only if they are: in another process, too, and whatever was used in between."""

from __future__ import annotations

import functools
import heapq
import importlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal

import dspy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sirius_dspy import CriticAugmenter, Curator, ExperienceLibrary, RepairDemos
from sirius_dspy.errors import RunMismatchError, SettingsError
from sirius_dspy.identity.describe import describe
from sirius_dspy.identity.parts import changes
from sirius_dspy.repair.leak import LeakGuard
from sirius_dspy.report import read_results
from sirius_dspy.testing import ToyLM
from sirius_dspy.tracking.events import Tracker
from sirius_dspy.training.trainers import ProviderTrainer
from tests import ROOT
from tests.toy import ADAPTER, exact, examples, optimizer, skill, student


@pytest.fixture(autouse=True)
def chat() -> None:
    dspy.configure(adapter=ADAPTER)


def differing(before: Any, now: Any) -> list[str]:
    return [str(change) for change in changes(describe(before), describe(now), "it")]


def function(source: str, name: str = "metric", **names: Any) -> Any:
    """A function of a file of its own, so that its source can be found."""
    space: dict[str, Any] = {"__name__": "user_code", **names}
    filename = f"<user code {hash(source)}>"
    import linecache

    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), space)
    return space[name]


# Code


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
    assert changes(before, described("# Why.\n" + HELPERS.replace("x):", "x ):"))) == []
    assert changes(before, described(HELPERS.replace("x +", "x -")))
    assert changes(before, described(HELPERS.replace("WEIGHT = 1", "WEIGHT = 2")))


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


def closed(value):
    return lambda example, prediction, trace=None: value


def graded(example, prediction, trace=None, *, weight=1.0, scale=(1,)):
    return weight * scale[0]


class Holder:
    BONUS = 0

    def __init__(self, value: Any = 1.0) -> None:
        self._value = value

    def __call__(self, example, prediction, trace=None):
        return self._value


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
        (CriticAugmenter(), None, "`it`: sirius_dspy.repair.augmenters.CriticAugmenter -> None"),
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
    assert changes(describe(dspy.LM("openai/x")), changed) == []
    assert "planted-secret" not in json.dumps(changed)


# State


class Busy:
    """Changes itself in every way while it works."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.cache: dict = {}
        self.known: dict = {}
        self.rows: list = []
        self.calls = 0
        self.last = None
        self.store = Store()

    def __call__(self, example, prediction, trace=None):
        self.calls += 1
        self.last = prediction
        self.known[prediction] = example
        self._note(prediction)
        return self.store.get(prediction) and self.weight

    def _note(self, prediction):
        self.rows.append(prediction)

    def set_weight(self, weight):
        self.weight = weight

    def add_rule(self, name, value):
        self.rules = {**getattr(self, "rules", {}), name: value}


class Store:
    def __init__(self) -> None:
        self.found: dict = {}

    def get(self, key):
        return self.found.setdefault(key, 1)


def test_what_an_object_changes_while_it_works_is_no_setting_but_what_its_user_changes_is():
    fresh, used = Busy(), Busy()
    used("example", "prediction")
    assert differing(fresh, used) == []
    used.set_weight(2.0)
    assert differing(fresh, used) == ["`it.weight`: 1.0 -> 2.0"]
    ruled = Busy()
    ruled.add_rule("length", 3)
    assert differing(fresh, ruled) == ['`it.rules`: nothing -> {"length":3}']


def remembered(metric):
    memory: dict = {}

    @functools.wraps(metric)
    def inner(*arguments):
        if arguments not in memory:
            memory[arguments] = metric(*arguments)
        return memory[arguments]

    return inner


COUNT, SEEN = 0, []


def count():
    SEEN.append(1)


@remembered
def counting(example, prediction, trace=None, _answers={}):  # noqa: B006
    global COUNT
    COUNT += 1
    count()
    _answers[example] = prediction
    return len(SEEN)


@functools.lru_cache
def kept(example, prediction):
    return 1.0


@pytest.mark.parametrize("metric", [counting, kept])
def test_functions_that_remember_are_the_same_afterwards(metric):
    before = describe(metric)
    metric("example", "prediction")
    assert changes(before, describe(metric)) == []
    assert before["function"] in ("kept", "remembered.<locals>.inner", "inner", "counting")


class Tally:
    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.count = 0
        self.rows: list = []

    def tick(self):
        self.count += 1
        self.rows.append(self.count)


def tick(tally):
    tally.tick()


def load(owner):
    if owner.last is None:
        owner.last = {"weights": 3}


class Working:
    """Has something of every kind that changes; each subclass changes it in another way."""

    kept: list = []  # noqa: RUF012

    def __init__(self, weight: float = 1.0) -> None:
        self.tally, self.tallies, self.named = Tally(weight), [Tally(weight)], {"a": Tally(weight)}
        self.best: list = []
        self.seen: dict = {"n": 0}
        self.last = None

    def note(self, tally, rows):
        tally.count += 1
        rows.append(1)


class ByAnotherName(Working):
    def __call__(self, *_):
        tally, seen, add = self.tally, self.seen, self.best.append
        seen["n"] += 1
        tally.tick()
        add(1)


class InALoop(Working):
    def __call__(self, *_):
        for number, tally in enumerate(self.tallies):
            tally.count += number + 1
        for tally in self.named.values():
            tally.tick()
        self.named["a"].tick()


class ThroughAFunction(Working):
    def __call__(self, *_):
        tick(self.tally)
        load(self)
        heapq.heappush(self.best, 1)
        self.note(self.tallies[0], self.tally.rows)


class ByItsName(Working):
    def __call__(self, *_):
        setattr(self, "last", 1)  # noqa: B010
        self.__dict__["seen"] = {}
        vars(self)["best"] = [2]
        getattr(self, "tally").count += 1  # noqa: B009
        type(self).kept.append(1)
        self.__class__.total = 5


class WhenItIsRead(Working):
    @property
    def model(self):
        if self.last is None:
            self.last = {"loaded": True}
        return self.last

    def __call__(self, *_):
        return self.model


WORKING = [ByAnotherName, InALoop, ThroughAFunction, ByItsName, WhenItIsRead]


@pytest.mark.parametrize("kind", WORKING)
def test_state_is_told_from_settings_however_the_code_reaches_it(kind):
    metric = kind()
    before = describe(metric)
    metric("example", "prediction")
    metric("example", "prediction")
    assert changes(before, describe(metric), "it") == []
    assert {line.split(":")[0] for line in differing(kind(1.0), kind(2.0))} >= {"`it.tally.weight`"}


class Copying:
    """Changes copies of its settings only."""

    def __init__(self, words: list) -> None:
        self.words = words

    def __call__(self, *_):
        words = self.words
        words = sorted(words)
        words.append("x")
        number = len(self.words)
        number += 1
        self.words.sort()
        return self.more(self.words)

    def more(self, words):
        words = [*words]
        words.append("y")
        return words


def test_what_changes_copies_of_a_setting_leaves_it_a_setting():
    assert differing(Copying(["a"]), Copying(["b"])) == ["`it.words[0]`: 'a' -> 'b'"]


def test_nothing_is_too_odd_to_be_described():
    class Stubborn:
        def __getattribute__(self, name):
            raise RuntimeError(name)

    loop: list = []
    loop.append({"again": loop})
    deep: Any = 1
    for _ in range(2000):
        deep = [deep]
    odd = [Stubborn(), loop, deep, object(), iter([]), os.environ, sys, float("nan"), "\ud800", {Stubborn: 1}, b"x"]
    for value in odd:
        assert "0x" not in json.dumps(describe(value))
        assert changes(describe(value), json.loads(json.dumps(describe(value)))) == []


# Other processes

CHILD = textwrap.dedent(
    """
    import enum, json, os, sys, threading
    import dspy
    from sirius_dspy.testing import ScriptedLM, chat_reply
    from tests.toy import ADAPTER, examples, optimizer, student

    class Kind(enum.Enum):
        A = "a"
        B = "b"

    class Judge:
        def __init__(self):
            self.judge = dspy.Predict("question, answer -> score: float")
            self.judge.lm = ScriptedLM(lambda asked: chat_reply(score="1.0"), "scripted/judge")
            self.words = {"a", "b", "c", "d", Kind.A, Kind.B, None, 1, ("x", 2)}
            self.kinds = {Kind.A: {"x", "y"}, Kind.B: frozenset("xyz")}
            self.lock = threading.Lock()
            self.known = {}
            self.owner = {"me": self}

        def __call__(self, example, prediction, trace=None):
            if prediction.answer not in self.known:
                found = self.judge(question=str(example.number), answer=prediction.answer)
                self.known[prediction.answer] = found.score
            return self.known[prediction.answer]

    class JudgeModule(dspy.Module):
        def __init__(self):
            super().__init__()
            self.judge = dspy.Predict("question, answer -> score: float")
            self.judge.lm = ScriptedLM(lambda asked: chat_reply(score="1.0"), "scripted/judge")
            self.asked = set()

        def forward(self, example, prediction, trace=None):
            self.asked.add(prediction.answer)
            return self.judge(question=str(example.number), answer=prediction.answer).score

    if __name__ == "__main__":
        dspy.configure(adapter=ADAPTER)
        program = student(registry=sys.argv[2])
        settings = {"iterations": 1, "augmenter": None, "run_dir": sys.argv[2]}
        made = optimizer(**settings)
        made.metric = {"Judge": Judge, "JudgeModule": JudgeModule}[sys.argv[1]]()
        result = made.compile(program, trainset=examples(range(2)), valset=examples(range(2)))
        print(json.dumps([result.detailed_results["run"], program.doubler.lm.calls]))
    """
)


@pytest.mark.parametrize("metric", ["Judge", "JudgeModule"])
def test_a_metric_with_a_judge_a_set_a_cache_and_a_cycle_resumes_in_another_process(metric, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(CHILD, encoding="utf-8")
    found = []
    for seed in ("1", "2"):
        child = subprocess.run(
            [sys.executable, str(script), metric, str(tmp_path / "run")],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert child.returncode == 0, child.stderr[-2000:]
        found.append(json.loads(child.stdout))
    assert found[0][0] == found[1][0]
    assert found[0][1] > 0
    assert found[1][1] == 0


# Whole compiles


class Begun(BaseException):
    """Not an `Exception`, so that nothing catches it."""


class Stopping(Tracker):
    def on_compile_started(self, event):
        raise Begun


def begins(
    run_dir: Path, program: dspy.Module | None = None, *, metric: Any = exact, adapter: Any = ADAPTER, **options
):
    """Whether the folder takes a compile with these settings; no LM is called."""
    data = {name: options.pop(name, examples(range(2))) for name in ("trainset", "valset")}
    made = optimizer(run_dir, tracker=Stopping(), **options)
    made.metric = metric
    with dspy.context(adapter=adapter):
        try:
            made.compile(program or student(), teacher=options.get("teacher"), **data)
        except Begun:
            return True
        except RunMismatchError as error:
            return str(error)
    raise AssertionError("the compile went on")


class Wide(dspy.Module):
    """As the toy program, with a number that `forward` uses."""

    def __init__(self, limit: int = 3, agents: tuple[str, ...] = ("doubler",)) -> None:
        super().__init__()
        self.limit = limit
        self.doubler = dspy.Predict("number: int -> doubled")
        self.writer = dspy.ChainOfThought("doubled -> answer")

    def forward(self, number):
        return self.writer(doubled=self.doubler(number=min(number, self.limit)).doubled)


class Wider(Wide):
    def forward(self, number):
        return self.writer(doubled=self.doubler(number=max(number, self.limit)).doubled)


def wide(
    kind: type = Wide, *, instructions: str = "", temperature: float | None = None, demos: int = 0, **made
) -> Wide:
    program = kind(**made)
    program.set_lm(ToyLM(skill=skill))
    if instructions:
        program.doubler.signature = program.doubler.signature.with_instructions(instructions)
    if temperature is not None:
        program.writer.predict.lm = ToyLM(skill=skill, temperature=temperature)
    program.doubler.demos = [dspy.Example(number=number, doubled="x") for number in range(demos)]
    return program


DEMO = dspy.Example(number=1, doubled="2")

CHANGES: dict[str, Any] = {
    "settings.threshold": st.floats(-5, 5).filter(lambda x: x != 1.0).map(lambda x: {"threshold": x}),
    "settings.samples": st.integers(3, 99).map(lambda n: {"samples": n}),
    "settings.temperature": st.floats(0.1, 0.9).map(lambda x: {"temperature": x}),
    "settings.seed": st.integers(1, 999).map(lambda n: {"seed": n}),
    "settings.max_repairs": st.integers(0, 9).map(lambda n: {"max_repairs": n}),
    "settings.cumulative": st.just({"cumulative": True}),
    "settings.until_solved": st.just({"until_solved": True}),
    "settings.promote": st.just({"promote": False}),
    "settings.train_from": st.just({"train_from": "current"}),
    "metric": st.sampled_from([closed(1.0), Holder(), functools.partial(graded, weight=2)]).map(
        lambda m: {"metric": m}
    ),
    "curator.max_rows": st.integers(1, 99).map(lambda n: {"curator": Curator(max_rows=n)}),
    "augmenter.temperature": st.floats(0.1, 0.9).map(lambda x: {"augmenter": CriticAugmenter(temperature=x)}),
    "trainer.train_kwargs": st.integers(1, 9).map(lambda n: {"trainer": ProviderTrainer({"n_epochs": n})}),
    "frozen": st.just({"frozen": ["doubler"]}),
    "agents": st.just({"agents": {"team": ["doubler", "writer.predict"]}}),
    "cold_start": st.just({"cold_start": {"doubler": [DEMO]}}),
    "adapter_settings": st.just({"adapter": dspy.ChatAdapter()}),
    "trainset": st.integers(3, 9).map(lambda n: {"trainset": examples(range(n))}),
    "valset": st.integers(3, 9).map(lambda n: {"valset": examples(range(n))}),
    "program.limit": st.integers(4, 99).map(lambda n: {"wide": {"limit": n}}),
    "program": st.just({"wide": {"kind": Wider}}),
    "program.doubler.signature.instructions": st.text("abc", min_size=1).map(lambda t: {"wide": {"instructions": t}}),
    "lms.writer.predict.temperature": st.floats(0, 2).map(lambda x: {"wide": {"temperature": x}}),
    "demos.doubler": st.integers(1, 3).map(lambda n: {"wide": {"demos": n}}),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("begun")
    assert begins(run_dir, wide()) is True
    return run_dir


@pytest.mark.parametrize("path", CHANGES)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_setting_is_refused_by_name(path, data, begun):
    changed = data.draw(CHANGES[path])
    said = begins(begun, wide(**changed.pop("wide", {})), **changed)
    assert f"`{path}" in str(said)
    assert "accept_changes" in said


@pytest.mark.parametrize(
    "options",
    [{"iterations": 5}, {"num_threads": 2}, {"threshold": 1}, {"trainset": examples([1, 0])}, {"metric": Holder()}],
)
def test_what_may_differ_may_differ(options, tmp_path):
    metric = options.get("metric", exact)
    assert begins(tmp_path, wide(), metric=metric) is True
    assert begins(tmp_path, wide(), **options) is True


def test_several_changes_are_all_listed(begun):
    said = begins(begun, wide(limit=9), threshold=0.5, metric=closed(1.0))
    assert "`program.limit`: 3 -> 9" in said
    assert "`settings.threshold`: 1.0 -> 0.5" in said
    assert "`metric`: 'exact' -> '<lambda>'" in said


def test_an_accepted_change_goes_on_with_the_same_runs_and_is_noted(tmp_path):
    def never(example, prediction, trace=None):
        return 0.0

    made = optimizer(tmp_path, iterations=1, augmenter=None)
    first = made.compile(student(), trainset=examples(), valset=examples())
    changed = {"iterations": 1, "augmenter": None, "curator": Curator(max_rows=5)}
    with pytest.raises(RunMismatchError, match=r"accept_changes=\('curator.max_rows',\)"):
        optimizer(tmp_path, **changed).compile(student(), trainset=examples(), valset=examples())
    accepting = optimizer(tmp_path, accept_changes=["curator"], **changed)
    program = student()
    again = accepting.compile(program, trainset=examples(), valset=examples())
    assert again.detailed_results["run"] == first.detailed_results["run"]
    assert program.doubler.lm.calls == 0
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert record["accepted"][0]["changes"] == ["`curator.max_rows`: None -> 5"]
    # It is the compile of this folder now, and needs no word any more.
    assert optimizer(tmp_path, **changed).compile(student(), trainset=examples(), valset=examples())
    accepting.metric = never
    with pytest.raises(RunMismatchError, match="metric"):
        accepting.compile(student(), trainset=examples(), valset=examples())


def test_a_report_of_an_unfinished_compile_finds_its_runs_after_an_accepted_change(tmp_path):
    class Interrupting(Tracker):
        def on_curated(self, event):
            raise KeyboardInterrupt

    def interrupted(**options):
        made = optimizer(tmp_path, iterations=1, augmenter=None, tracker=Interrupting(), **options)
        with pytest.raises(KeyboardInterrupt):
            made.compile(student(), trainset=examples(), valset=examples())

    interrupted()
    interrupted(curator=Curator(max_rows=3), accept_changes=("curator",))
    results = read_results(tmp_path, ExperienceLibrary(tmp_path / "library.sqlite"))
    assert results["iterations"][0]["score"] == 0.5


def test_names_to_accept_are_checked(tmp_path):
    with pytest.raises(SettingsError, match=r"accept_changes.*'metrik'"):
        begins(tmp_path, accept_changes=["metrik"])
    with pytest.raises(SettingsError, match="accept_changes"):
        begins(tmp_path, accept_changes="metric")


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "metric": "exact"}), encoding="utf-8")
    assert "another version" in str(begins(tmp_path))


def test_no_credential_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "planted-in-the-environment")

    class Paying:
        def __init__(self) -> None:
            self.api_key = "planted-as-an-attribute"
            self.url = "https://api.example/planted-in-the-environment"

        def __call__(self, example, prediction, trace=None):
            return 1.0

    Paying.account = json.dumps({"private_key": "planted-as-json", "filler": "x" * 300})
    monkeypatch.setenv("SERVICE_ACCOUNT_KEY", Paying.account)
    judge = dspy.LM("openai/judge", api_key="planted-of-a-judge")
    known = {"first": "planted-of-a-judge"}
    Paying.judge = staticmethod(lambda: (judge, known))
    critic = dspy.LM("openai/x", api_key="planted-as-a-key", extra_headers={"Cookie": "planted-as-a-header"})
    assert begins(tmp_path, metric=Paying(), augmenter=CriticAugmenter(critic)) is True
    assert "planted" not in (tmp_path / "run.json").read_text(encoding="utf-8")
