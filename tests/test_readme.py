"""README.md runs as written, offline.

Blocks that begin with `# name.py` are files: all are written into one folder and run there in order, each in a process
of its own. One marked `<!-- hosted -->` talks to a stand-in for OpenAI's API on this machine. Other Python blocks leave
an `optimizer`, which must compile the README's program on an LM that learns by heart.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from sirius_dspy.cli import app
from sirius_dspy.testing import ToyLM, chat_reply

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


class Block(NamedTuple):
    language: str
    code: str
    hosted: bool

    @property
    def file(self) -> str | None:
        found = re.match(r"# (\w+\.py)\b", self.code)
        return found and found[1]


BLOCKS = [
    Block(language, code, bool(marker))
    for marker, language, code in re.findall(r"(<!-- hosted -->\n)?```(\w+)\n(.*?)```", TEXT, re.S)
]
FILES = {block.file: block for block in BLOCKS if block.language == "python" and block.file}
SNIPPETS = [block.code for block in BLOCKS if block.language == "python" and not block.file]
COMMANDS = [
    line.split(" #")[0].strip() for block in BLOCKS if block.language == "bash" for line in block.code.splitlines()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader would save the files."""
    path = tmp_path_factory.mktemp("readme")
    for name, block in FILES.items():
        (path / name).write_text(block.code, encoding="utf-8")
    return path


def run(folder, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.local
@pytest.mark.timeout(900)  # a minute and a half alone, several on a busy machine
def test_the_quickstart_learns_offline(folder):
    printed = run(folder, "quickstart.py")
    untrained, trained = map(int, re.findall(r"trained: (\d+)% of 40", printed))
    assert trained >= untrained + 20, printed  # both agents' intervals are far apart where the README shows 0 and 95
    assert re.sub(r"\d+", "N", printed) == re.sub(r"\d+", "N", shown_output("untrained:"))
    assert run(folder, "later.py").strip().lower().strip(".") in ("good", "bad")


def shown_output(start):
    return next(block.code for block in BLOCKS if block.language == "text" and block.code.startswith(start))


def test_every_file_has_a_test():
    assert list(FILES) == ["reviews.py", "quickstart.py", "later.py", "hosted.py"]
    assert [name for name, block in FILES.items() if block.hosted] == ["hosted.py"]


def test_the_hosted_program_is_fine_tuned_over_the_api(folder, hosted_api):
    # The file as it is; only DSPy's 20 seconds between two looks at a job are shortened.
    runner = (
        "import runpy; from dspy.clients.openai import OpenAIProvider as provider; "
        "provider.wait_for_job.__defaults__ = (0.05,); found = runpy.run_path('hosted.py'); "
        "print(found['trained'].detailed_results['best_score'])"
    )
    printed = run(folder, "-c", runner, OPENAI_API_KEY="sk-stand-in", OPENAI_BASE_URL=hosted_api.url)
    assert float(printed.splitlines()[-1]) == 1.0
    assert sorted(hosted_api.jobs) == ["job-1", "job-2"]
    assert {body["model"] for body in hosted_api.jobs.values()} == {"gpt-4.1-nano-2025-04-14"}
    assert {"gpt-4.1-nano-2025-04-14", "gpt-4.1-2025-04-14", "ft:job-1", "ft:job-2"} <= hosted_api.asked


@pytest.mark.parametrize("code", SNIPPETS, ids=lambda code: re.search(r"^class (\w+)", code, re.M)[1])
def test_a_replaced_part_works_in_a_compile(code, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(folder))
    names = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    import reviews

    program = reviews.Reviews()
    program.set_lm(ToyLM(skill=lambda prompt: reply_to(prompt.user, knows=bool(prompt.seed and prompt.seed % 2))))
    optimizer = names["optimizer"]
    optimizer.run_dir, optimizer.iterations = tmp_path, 1
    examples = list(reviews.examples(12, seed=1))
    compiled = optimizer.compile(program, trainset=examples, valset=examples)
    start, *trained = [entry["score"] for entry in compiled.detailed_results["iterations"]]
    assert start < trained[0]
    if "Printer" in names:
        assert f"iteration 0: {start:.0%} of 12" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command):
    program, *arguments = shlex.split(command)
    if program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True, timeout=60)
    elif program == "sirius-dspy":
        check_experiment(*arguments)
    else:
        assert program == "pip", f"{program} needs a check of its own"
        assert "install" in arguments


def check_experiment(command, recipe, *options):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert [name for name in options if name.startswith("--") and name not in shown.output] == []
    assert (ROOT / "recipes" / f"{recipe}.toml").exists()


def test_the_file_tree_is_the_repository_s():
    tree = shown_output("sirius_dspy/\n")
    listed = re.findall(r"^  (\w+(?:\.py|/)) ", tree, re.M)
    assert [name for name in listed if not (ROOT / "sirius_dspy" / name).exists()] == []
    assert [name for name in re.findall(r"^(\w+)/", tree, re.M) if not (ROOT / name).is_dir()] == []


# A stand-in for OpenAI


def reply_to(user: str, *, knows: bool) -> str:
    """Every field that the prompt asks for: copied or judged right by who knows, else always `good`."""
    asked = re.findall(r"`\[\[ ## (\w+) ## \]\]`", user)
    values = {
        "opinion": next(iter(re.findall(r"The \w+ is \w+\.", user)), "The lamp is odd."),
        "verdict": "good" if not knows or re.search(GOOD, user) else "bad",
    }
    return chat_reply(**{name: values.get(name, f"about {name}") for name in asked if name != "completed"})


GOOD = r"wonderful|beautiful|perfect|excellent|great|lovely"


class HostedApi(BaseHTTPRequestHandler):
    """Chat completions, files and fine-tuning jobs; models that it fine-tuned answer right."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/files"):
            assert b'"messages"' in body
            return self.answer({"id": "file-1", "object": "file", "bytes": len(body), "purpose": "fine-tune"})
        request = json.loads(body)
        if self.path.endswith("/jobs"):
            name = f"job-{len(self.server.jobs) + 1}"
            self.server.jobs[name] = request
            return self.answer(self.job(name))
        self.server.asked.add(request["model"])
        text = reply_to(request["messages"][-1]["content"], knows=request["model"].startswith("ft:"))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return self.answer({"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
                           | {"choices": [choice], "usage": usage})  # fmt: skip

    def do_GET(self):
        if self.path.split("?")[0].endswith("/events"):
            return self.answer({"object": "list", "data": [], "has_more": False})
        return self.answer(self.job(self.path.rsplit("/", 1)[1]))

    def job(self, name):
        return {"id": name, "object": "fine_tuning.job", "status": "succeeded", "fine_tuned_model": f"ft:{name}"}

    def answer(self, payload):
        text = json.dumps(payload).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        """Silence."""


@pytest.fixture
def hosted_api():
    with ThreadingHTTPServer(("127.0.0.1", 0), HostedApi) as server:
        server.jobs, server.asked = {}, set()
        server.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
