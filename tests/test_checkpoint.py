"""Checkpoints: written whole, read anywhere, refused when damaged."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import dspy
import pytest

import sirius_dspy
from sirius_dspy.errors import CheckpointError
from sirius_dspy.testing import ScriptedLM, chat_reply
from tests.toy import ADAPTER, Doubling, examples, optimizer, skill, student

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def chat() -> None:
    logging.getLogger("dspy").setLevel(logging.CRITICAL)
    dspy.configure(adapter=ADAPTER)


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
        "program = sirius_dspy.load(sys.argv[1], program=Doubling)\n"
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
        sirius_dspy.load(folder, program=Doubling, configure=False)
    sirius_dspy.load(folder, program=Doubling)
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
