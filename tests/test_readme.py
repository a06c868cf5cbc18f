"""README.md runs as written, offline.

Blocks that begin with `# name.py` are files: all are written into one folder and run there in order, each in a separate
process. One marked `<!-- hosted -->` talks to a stand-in for OpenAI's API on this machine.
"""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from typer.testing import CliRunner

from sirius_dspy.cli import app
from tests import ROOT
from tests.snippets import blocks_of, commands_of, files_of, hosted_api, run, run_hosted

__all__ = ["hosted_api"]  # pytest finds fixtures by their names in the module

pytestmark = pytest.mark.docs

BLOCKS = blocks_of(ROOT / "README.md")
FILES = files_of(BLOCKS)
COMMANDS = commands_of(BLOCKS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader would save the files."""
    path = tmp_path_factory.mktemp("readme")
    for name, block in FILES.items():
        (path / name).write_text(block.code, encoding="utf-8")
    return path


@pytest.mark.local
@pytest.mark.timeout(900)  # a minute and a half alone, several on a busy machine
def test_the_quickstart_learns_offline(folder):
    printed = run(folder, "quickstart.py")
    untrained, trained = map(int, re.findall(r"trained: (\d+)% of 40", printed))
    assert trained >= untrained + 20, printed  # the README prints 0 and 95, whose intervals are far apart
    assert re.sub(r"\d+", "N", printed) == re.sub(r"\d+", "N", find_output("untrained:"))
    assert run(folder, "later.py").strip().lower().strip(".") in ("good", "bad")


def find_output(start):
    return next(block.code for block in BLOCKS if block.language == "text" and block.code.startswith(start))


def test_every_python_block_has_a_test():
    assert [block.file for block in BLOCKS if block.language == "python"] == list(FILES)
    assert list(FILES) == ["reviews.py", "quickstart.py", "later.py", "hosted.py"]
    assert [name for name, block in FILES.items() if block.needs == "hosted"] == ["hosted.py"]


def test_the_hosted_program_is_fine_tuned_over_the_api(folder, hosted_api):
    then = "print(found['trained'].detailed_results['best_score'])"
    printed = run_hosted(folder, "hosted.py", hosted_api.url, then)
    assert float(printed.splitlines()[-1]) == 1.0
    assert sorted(hosted_api.jobs) == ["job-1", "job-2"]
    assert {body["model"] for body in hosted_api.jobs.values()} == {"gpt-4.1-nano-2025-04-14"}
    assert {"gpt-4.1-nano-2025-04-14", "gpt-4.1-2025-04-14", "ft:job-1", "ft:job-2"} <= hosted_api.asked


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command):
    program, *arguments = shlex.split(command)
    if program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True, timeout=60)
    elif program == "sirius-dspy":
        check_ours(*arguments)
    else:
        assert program == "pip", f"{program} needs a check of its own"
        assert "install" in arguments


def check_ours(command, *arguments):
    words = [command, arguments[0]] if command == "library" else [command]
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert [name for name in arguments if name.startswith("--") and name not in result.output] == []
    if command == "experiment":
        assert (ROOT / "recipes" / f"{arguments[0]}.toml").exists()


def test_the_file_tree_is_the_repository_s():
    tree = find_output("sirius_dspy/\n")
    listed = re.findall(r"^  (\w+(?:\.py|/)) ", tree, re.M)
    folders = {path.parent.name + "/" for path in (ROOT / "sirius_dspy").glob("*/__init__.py")}
    assert folders <= set(listed)
    assert [name for name in listed if not (ROOT / "sirius_dspy" / name).exists()] == []
    assert [name for name in re.findall(r"^(\w+)/", tree, re.M) if not (ROOT / name).is_dir()] == []
