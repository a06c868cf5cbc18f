"""`sirius-dspy report`: the files it writes, and how it ends."""

import json
import shutil
import warnings

import dspy
import pytest
from typer.testing import CliRunner

from sirius_dspy.cli import app
from sirius_dspy.optimizer.run_dir import RunDir
from tests import toy


def cli(*arguments):
    with warnings.catch_warnings():  # the command silences some for its process
        return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    with dspy.context(adapter=toy.ADAPTER):
        toy.optimizer(folder, iterations=1).compile(
            toy.student(), trainset=toy.examples(), valset=toy.examples(range(4, 12))
        )
    return folder


@pytest.fixture
def run_dir(compiled, tmp_path):
    return shutil.copytree(compiled, tmp_path / "run")


def test_it_writes_page_and_markdown_into_the_folder(run_dir):
    done = cli(run_dir)
    page, markdown = run_dir / "report" / "report.html", run_dir / "report" / "report.md"
    assert (done.exit_code, done.stdout) == (0, f"{page}\n{markdown}\n")
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "## Experience library" in markdown.read_text(encoding="utf-8")


def test_it_writes_where_it_is_told(run_dir, tmp_path):
    done = cli(run_dir, "--out", tmp_path / "new" / "page.html", "--json")
    assert json.loads(done.stdout) == {
        "html": str(tmp_path / "new" / "page.html"),
        "markdown": str(tmp_path / "new" / "page.md"),
    }
    assert (tmp_path / "new" / "page.html").is_file()
    assert not (run_dir / "report").exists()


def test_a_library_that_moved_can_be_named(run_dir, tmp_path):
    own = RunDir(run_dir).library
    for file in run_dir.glob(f"{own.name}*"):  # the log of an open library belongs to it
        file.rename(tmp_path / file.name.replace(own.name, "moved.sqlite"))
    done = cli(run_dir, "--library", tmp_path / "moved.sqlite")
    assert done.exit_code == 0
    assert "## Experience library" in (run_dir / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_a_folder_of_no_compile_is_one_message(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli(where)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"{where!r} is not the folder of a compile" in done.stderr
    assert list(tmp_path.iterdir()) == []
