"""Two compiles are the same only if they are: in another process, too, and whatever was used in between."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sirius_dspy import (
    Budget,
    Collect,
    CriticAugmenter,
    Curator,
    Gate,
    Patience,
    ProviderTrainer,
    Tracker,
    ValsetGate,
)
from sirius_dspy.errors import RunMismatchError, SettingsError
from sirius_dspy.optimizer.reading import read_results
from sirius_dspy.testing import ToyLM
from tests import ROOT
from tests.identity_help import Holder, closed, graded
from tests.toy import ADAPTER, exact, examples, optimizer, skill, student


@pytest.fixture(autouse=True)
def chat() -> None:
    dspy.configure(adapter=ADAPTER)


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
    made = optimizer(run_dir, tracker=Stopping(), **{"trainer": ProviderTrainer(), **options})
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


class KeepFirst(Gate):
    def choose(self, trial):
        return trial.agents[:1]


CHANGES: dict[str, Any] = {
    "settings.threshold": st.floats(-5, 5).filter(lambda x: x != 1.0).map(lambda x: {"threshold": x}),
    "settings.seed": st.integers(1, 999).map(lambda n: {"seed": n}),
    "collect.samples": st.integers(3, 99).map(lambda n: {"collect": Collect(samples=n)}),
    "collect.temperature": st.floats(0.1, 0.9).map(lambda x: {"collect": Collect(samples=2, temperature=x)}),
    "collect.until_solved": st.just({"collect": Collect(samples=2, until_solved=True)}),
    "collect.demos": st.just({"collect": Collect(samples=2, demos={"doubler": [DEMO]})}),
    "gate": st.sampled_from([None, KeepFirst()]).map(lambda gate: {"gate": gate}),
    "gate.min_gain": st.floats(0.01, 1).map(lambda x: {"gate": ValsetGate(min_gain=x)}),
    "metric": st.sampled_from([closed(1.0), Holder(), functools.partial(graded, weight=2)]).map(
        lambda m: {"metric": m}
    ),
    "curator.max_rows": st.integers(1, 99).map(lambda n: {"curator": Curator(max_rows=n)}),
    "curator.cumulative": st.just({"curator": Curator(cumulative=True)}),
    "augmenter": st.just({"augmenter": None}),
    "augmenter.max_repairs": st.integers(0, 9).map(lambda n: {"augmenter": CriticAugmenter(max_repairs=n)}),
    "augmenter.temperature": st.floats(0.1, 0.9).map(lambda x: {"augmenter": CriticAugmenter(temperature=x)}),
    "trainer.train_kwargs": st.integers(1, 9).map(lambda n: {"trainer": ProviderTrainer({"n_epochs": n})}),
    "trainer.train_from": st.just({"trainer": ProviderTrainer(train_from="current")}),
    "frozen": st.just({"frozen": ["doubler"]}),
    "agents": st.just({"agents": {"team": ["doubler", "writer.predict"]}}),
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
    [
        {"iterations": 5},
        {"num_threads": 2},
        {"threshold": 1},
        {"patience": Patience(retries=0, call_timeout_s=None, max_unfinished=3)},
        {"budget": Budget(calls=10_000)},
        {"trainset": examples([1, 0])},
        {"metric": Holder()},
    ],
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
    results = read_results(tmp_path)
    assert results.iterations[0].score == 0.5


def test_names_to_accept_are_checked(tmp_path):
    with pytest.raises(SettingsError, match=r"accept_changes.*'metrik'"):
        begins(tmp_path, accept_changes=["metrik"])
    with pytest.raises(SettingsError, match="accept_changes"):
        begins(tmp_path, accept_changes="metric")


@pytest.mark.parametrize("number", [1, 2])
def test_a_folder_of_an_earlier_version_is_refused(number, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"format": number, "metric": "exact"}), encoding="utf-8")
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
