"""Checkpoints: written whole, read anywhere, refused when damaged."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import dspy
import pydantic
import pytest

import sirius_dspy
from sirius_dspy.checkpoint import load_agent, save_agent, verify
from sirius_dspy.errors import CheckpointError
from sirius_dspy.testing import ScriptedLM, chat_reply
from sirius_dspy.testing.results import make_result
from tests import ROOT
from tests.toy import ADAPTER, Doubling, examples, optimizer, skill, student

pytestmark = pytest.mark.usefixtures("chat_adapter")


@pytest.fixture
def compiled(tmp_path):
    return optimizer(tmp_path / "run", iterations=1).compile(student(), trainset=examples(), valset=examples())


def answers(program: dspy.Module) -> list[str]:
    return [program(number=number).answer for number in range(8)]


def test_a_checkpoint_answers_as_before_after_the_run_directory_is_gone(compiled, tmp_path):
    before = answers(compiled)
    folder = sirius_dspy.save(compiled, tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "run")
    moved = folder.rename(tmp_path / "moved")
    loaded = sirius_dspy.load(moved, program=Doubling)
    assert answers(loaded) == before == [f"ans:{2 * number}" for number in range(8)]
    assert loaded.detailed_results["best_score"] == 1.0
    assert loaded._compiled


def test_it_answers_in_another_process(compiled, tmp_path):
    folder = sirius_dspy.save(compiled, tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "run")
    script = (
        "import sys, sirius_dspy\n"
        "from tests.toy import Doubling\n"
        "program = sirius_dspy.load(sys.argv[1], program=Doubling, configure=True)\n"
        "print([program(number=number).answer for number in range(8)])"
    )
    child = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert child.stdout.strip() == str(answers(compiled))


def test_the_folder_holds_one_weight_set_per_agent_with_the_runs_it_learnt_from(compiled, tmp_path):
    folder = sirius_dspy.save(compiled, tmp_path / "checkpoint")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["program"] == "tests.toy:Doubling"
    assert set(manifest["agents"]) == {"doubler", "writer.predict"}
    library = sirius_dspy.ExperienceLibrary(tmp_path / "run" / "library.sqlite")
    for agent, entry in manifest["agents"].items():
        sources = [json.loads(line) for line in (folder / entry["weights"] / "sources.jsonl").read_text().splitlines()]
        assert len(sources) == 8
        assert all(library.get(source["trajectory"]).reward == 1.0 for source in sources)
        assert {source["predictor"] for source in sources} == {agent}
    assert str(tmp_path) not in (folder / "manifest.json").read_text()
    assert not list(folder.rglob("*.pkl"))


def test_the_active_adapter_becomes_the_checkpoints_or_is_an_error(compiled, tmp_path):
    folder = sirius_dspy.save(compiled, tmp_path / "checkpoint")
    dspy.configure(adapter=sirius_dspy.PlainAdapter())
    with pytest.raises(CheckpointError, match=r"ChatAdapter\(.*use_json_adapter_fallback=False.*PlainAdapter"):
        sirius_dspy.load(folder, program=Doubling)
    sirius_dspy.load(folder, program=Doubling, configure=True)
    assert type(dspy.settings.adapter) is dspy.ChatAdapter
    assert dspy.settings.adapter.use_json_adapter_fallback is False


def test_saving_again_replaces_a_checkpoint_and_nothing_else(compiled, tmp_path):
    folder = sirius_dspy.save(compiled, tmp_path / "checkpoint")
    sirius_dspy.save(compiled, folder)
    assert answers(sirius_dspy.load(folder, program=Doubling)) == answers(compiled)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        sirius_dspy.save(compiled, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "checkpoint", "mine"}  # no drafts left


@pytest.mark.parametrize("damage", ["change", "remove", "manifest", "format", "absent"])
def test_a_damaged_checkpoint_is_refused(damage, compiled, tmp_path):
    folder = sirius_dspy.save(compiled, tmp_path / "checkpoint")
    victim = next((folder / "agents").rglob("*.json"))
    manifest = folder / "manifest.json"
    if damage == "change":
        victim.write_text(victim.read_text() + " ")
    elif damage == "remove":
        victim.unlink()
    elif damage == "manifest":
        manifest.write_text("{")
    elif damage == "format":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    else:
        folder = tmp_path / "nothing"
    with pytest.raises(CheckpointError, match=r"checkpoint"):
        sirius_dspy.load(folder, program=Doubling)


def test_a_program_of_another_shape_is_refused(compiled, tmp_path):
    folder = sirius_dspy.save(compiled, tmp_path / "checkpoint")
    other = dspy.Module()
    other.judge = dspy.Predict("a -> b")
    with pytest.raises(CheckpointError, match="doubler"):
        sirius_dspy.load(folder, program=other)
    assert answers(sirius_dspy.load(folder, program=Doubling())) == answers(compiled)


def test_keys_and_endpoints_are_never_taken_from_or_written_to_a_file(tmp_path):
    program = Doubling()
    program.set_lm(dspy.LM("openai/gpt-4o-mini", api_key="sk-planted-secret-value", api_base="http://localhost:1/v1"))
    folder = sirius_dspy.save(program, tmp_path / "checkpoint")
    assert all(b"planted" not in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    with pytest.raises(CheckpointError, match="endpoint"):
        sirius_dspy.load(folder, program=Doubling)
    mine = ScriptedLM(skill)
    loaded = sirius_dspy.load(folder, program=Doubling, lms={"doubler": mine, "writer.predict": mine})
    assert loaded.doubler.lm is mine


class ForeignLM(ScriptedLM):
    """An LM class that is neither DSPy's nor ours."""


def test_lm_classes_of_others_are_not_imported_from_a_file(tmp_path):
    program = Doubling()
    program.set_lm(ForeignLM({"x": chat_reply(doubled="1")}))
    folder = sirius_dspy.save(program, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="ForeignLM"):
        sirius_dspy.load(folder, program=Doubling)


def test_dspys_own_save_and_load_go_on_working(compiled, tmp_path):
    compiled.save(str(tmp_path / "program.json"))
    loaded = Doubling()
    loaded.load(str(tmp_path / "program.json"), allow_unsafe_lm_state=True)
    assert answers(loaded) == answers(compiled)


def test_a_program_that_is_one_predictor_comes_back(tmp_path):
    for agent, build in (("predict", dspy.ChainOfThought), ("self", dspy.Predict)):
        program = build("number: int -> doubled")
        program.set_lm(ScriptedLM(skill))
        folder = sirius_dspy.save(program, tmp_path / agent)
        lms = {agent: ScriptedLM(skill)}
        loaded = sirius_dspy.load(folder, program=build("number: int -> doubled"), lms=lms)
        assert loaded.predictors()[0].lm is lms[agent]
        with pytest.raises(CheckpointError, match="signatures"):
            sirius_dspy.load(folder, program=build("question -> answer"), lms=lms)


def test_the_runs_an_agent_learnt_from_are_there_after_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compiled = optimizer("run", iterations=1).compile(student(), trainset=examples(), valset=examples())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = sirius_dspy.save(compiled, "checkpoint")
    for entry in verify(folder).agents.values():
        assert len((folder / entry.sources).read_text().splitlines()) == 8


def test_a_loaded_program_is_saved_with_weights_and_sources(compiled, tmp_path):
    first = sirius_dspy.save(compiled, tmp_path / "first")
    shutil.rmtree(tmp_path / "run")
    again = sirius_dspy.save(sirius_dspy.load(first, program=Doubling), tmp_path / "again")
    assert verify(again) == verify(first)
    assert answers(sirius_dspy.load(again, program=Doubling)) == answers(compiled)


def test_predictors_that_share_weights_keep_their_own_settings(tmp_path):
    one = dspy.LM("openai/gpt-4o-mini", temperature=0.9, max_tokens=50, stop=["\n"])
    program = Doubling()
    program.doubler.lm, program.writer.predict.lm = one, one.copy(temperature=0.0)
    vars(program)["detailed_results"] = make_result(agents={"team": ("doubler", "writer.predict")})
    folder = sirius_dspy.save(program, tmp_path / "checkpoint")
    loaded = sirius_dspy.load(folder, program=Doubling)
    assert loaded.doubler.lm.kwargs == one.kwargs
    assert loaded.writer.predict.lm.kwargs == {**one.kwargs, "temperature": 0.0}
    mine = ScriptedLM(skill)
    mixed = sirius_dspy.load(folder, program=Doubling, lms={"writer.predict": mine})
    assert (mixed.doubler.lm.kwargs, mixed.writer.predict.lm) == (one.kwargs, mine)
    both = sirius_dspy.load(folder, program=Doubling, lms={"team": mine})
    assert both.doubler.lm is both.writer.predict.lm is mine


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"api_base": "http://localhost:1/v1"}, "api_base"),
        ({"extra_headers": {"Ocp-Apim-Subscription-Key": "planted"}}, "extra_headers"),
        ({"fallbacks": [{"model": "openai/x", "api_base": "http://localhost:1"}]}, "fallbacks"),
        ({"aws_secret_access_key": "planted"}, "aws_secret_access_key"),
        ({"engine": "litellm"}, "engine"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_is_not_stored_of_an_lm_is_asked_for(tmp_path, arguments, named):
    program = Doubling()
    program.set_lm(dspy.LM("openai/gpt-4o-mini", **arguments))
    folder = sirius_dspy.save(program, tmp_path / "checkpoint")
    assert all(
        b"planted" not in path.read_bytes() and b"localhost" not in path.read_bytes() for path in files_of(folder)
    )
    with pytest.raises(CheckpointError, match=rf"'{named}'.*lms="):
        sirius_dspy.load(folder, program=Doubling)
    mine = ScriptedLM(skill)
    lms = {"doubler": mine, "writer.predict": mine}
    assert sirius_dspy.load(folder, program=Doubling, lms=lms).doubler.lm is mine


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_adapter_comes_back_with_its_arguments(compiled, tmp_path):
    for adapter in (
        sirius_dspy.PlainAdapter(use_native_function_calling=True),
        dspy.JSONAdapter(use_native_function_calling=False),
        dspy.XMLAdapter(use_json_adapter_fallback=False),
        dspy.ChatAdapter(use_json_adapter_fallback=False, parallel_tool_calls=True),
    ):
        dspy.configure(adapter=adapter)
        folder = sirius_dspy.save(compiled, tmp_path / type(adapter).__name__)
        dspy.configure(adapter=None)
        sirius_dspy.load(folder, program=Doubling, configure=True)
        active = dspy.settings.adapter
        assert type(active) is type(adapter)
        assert active is not adapter
        assert active.use_native_function_calling == adapter.use_native_function_calling
        assert active.parallel_tool_calls == adapter.parallel_tool_calls


class Shouting(dspy.ChatAdapter):
    """An adapter of the user's own."""


def test_an_adapter_of_one_s_own_has_to_be_active(compiled, tmp_path):
    dspy.configure(adapter=Shouting())
    folder = sirius_dspy.save(compiled, tmp_path / "checkpoint")
    sirius_dspy.load(folder, program=Doubling)
    dspy.configure(adapter=ADAPTER)
    with pytest.raises(CheckpointError, match="Shouting"):
        sirius_dspy.load(folder, program=Doubling)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(pydantic.BaseModel):
    x: int
    on: datetime.date


class Square(pydantic.BaseModel, extra="forbid"):
    origin: int = pydantic.Field(alias="from")

    @pydantic.computed_field
    def area(self) -> int:
        return self.origin**2


VALUES = [
    (str, "text"),
    (dict, {"a": [1, 2.5, None, True]}),
    (int, 2**70),
    (datetime.date, datetime.date(2024, 1, 2)),
    (datetime.datetime, datetime.datetime(2024, 1, 2, 3, 4, tzinfo=datetime.UTC)),
    (datetime.timedelta, datetime.timedelta(days=1, microseconds=3)),
    (list[datetime.date], [datetime.date(2024, 1, 2)]),
    (Color, Color.RED),
    (dict[str, Color], {"a": Color.BLUE}),
    (set[str], {"a"}),  # two may come in either order, which no process repeats
    (frozenset[Color], frozenset({Color.RED})),
    (tuple[int, float], (1, 2.0)),
    (decimal.Decimal, decimal.Decimal("1.10")),
    (uuid.UUID, uuid.UUID(int=7)),
    (bytes, b"text"),
    (Point, Point(x=1, on=datetime.date(2024, 1, 2))),
    (list[Point], [Point(x=1, on=datetime.date(2024, 1, 2))]),
    (Square, Square.model_validate({"from": 2})),
    (dspy.Image, dspy.Image("data:image/png;base64,iVBORw0KGgo=")),
    (dspy.Image, dspy.Image("https://example.org/a.png")),
    (dspy.History, dspy.History(messages=[{"question": "a", "answer": "b"}])),
]


def shown(annotation: object, value: object) -> tuple[dspy.Predict, ScriptedLM]:
    fields = {"value": (annotation, dspy.InputField()), "answer": (str, dspy.OutputField())}
    predictor = dspy.Predict(dspy.Signature(fields, "Answer."))
    predictor.demos = [dspy.Example(value=value, answer="a", note="x").with_inputs("value")]
    predictor.lm = ScriptedLM(lambda prompt: chat_reply(answer="ok"))
    return predictor, predictor.lm


@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=lambda item: ascii(item)[:40])
def test_demonstrations_of_every_type_are_equal_and_shown_alike_after_loading(annotation, value, tmp_path):
    program, before = shown(annotation, value)
    program(value=value)
    folder = sirius_dspy.save(program, tmp_path / "checkpoint")
    fresh, after = shown(annotation, value)
    loaded = sirius_dspy.load(folder, program=fresh, lms={"self": after})
    assert loaded.demos == program.demos
    assert type(loaded.demos[0].value) is type(value)
    assert loaded.demos[0].inputs().keys() == ["value"]
    loaded(value=value)
    assert after.requests[-1] == before.requests[-1]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (str, datetime.date(2024, 1, 2)),
        (str, Color.RED),
        pytest.param(str, object(), id="str-object"),  # whose text is its address
        (list, [datetime.date(2024, 1, 2)]),
        (list[float], [decimal.Decimal("1.1")]),
        (float, float("nan")),
        (tuple[float, float], (1, 2.0)),
        (bytes, b"\xff"),
    ],
    ids=ascii,
)
def test_a_demonstration_that_would_come_back_as_another_value_is_refused(annotation, value, tmp_path):
    program, _ = shown(annotation, value)
    with pytest.raises(CheckpointError, match=r"self.demos\[0\]\['value'\]"):
        sirius_dspy.save(program, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_results_come_back_as_they_were_but_for_places(compiled, tmp_path):
    folder = sirius_dspy.save(compiled, tmp_path / "checkpoint")
    loaded = sirius_dspy.load(folder, program=Doubling)
    assert loaded.detailed_results == dataclasses.replace(compiled.detailed_results, run_dir="", library="")


def test_results_of_another_optimizer_are_left_out(tmp_path):
    program = student()
    program.detailed_results = object()
    folder = sirius_dspy.save(program, tmp_path / "checkpoint")
    assert verify(folder).results is None
    assert not hasattr(sirius_dspy.load(folder, program=Doubling), "detailed_results")


def test_agents_whose_names_look_alike_have_folders_of_their_own(tmp_path):
    class Named(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = {
                name: dspy.Predict("a -> b") for name in ("x", "X", "x y", "x_y", "..", "é", "a/b", "z" * 300)
            }

    program = Named()
    program.set_lm(ScriptedLM({"a": "b"}))
    folder = sirius_dspy.save(program, tmp_path / "checkpoint")
    loaded = sirius_dspy.load(folder, program=Named)
    assert len(loaded.predictors()) == 8
    for agent in verify(folder).agents:
        one = save_agent(folder, agent, tmp_path / "one")
        assert list(verify(one).agents) == [agent]
        assert load_agent(one).model == "scripted/lm"
    with pytest.raises(CheckpointError, match="not 'nobody'"):
        save_agent(folder, "nobody", tmp_path / "two")


@pytest.mark.parametrize("program", [None, Doubling, "program", dspy.Module()], ids=repr)
def test_what_is_no_program_is_not_saved(program, tmp_path):
    with pytest.raises(CheckpointError):
        sirius_dspy.save(program, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
