"""Snippets of README.md and docs/: how they are found and run, and what stands in for the machines of others.

A Python block that begins with `# name.py` is a file; all others are code to go on with. A comment before a block says
what it needs: `<!-- hosted -->` the stand-in for OpenAI's and vLLM's API, `<!-- local -->` the embedded model,
`<!-- serve -->` a fine-tuning server.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from sirius_dspy.testing import chat_reply
from tests import ROOT
from tests.http_server import Handler, serving


class Block(NamedTuple):
    language: str
    code: str
    needs: str

    @property
    def file(self):
        found = re.match(r"# (\w+\.py)\b", self.code)
        return found and found[1]


def blocks_of(path):
    """The fenced blocks of a Markdown file."""
    pattern = r"(?:<!-- (hosted|local|serve) -->\n)?```(\w+)\n(.*?)```"
    found = re.findall(pattern, path.read_text(encoding="utf-8"), re.S)
    return [Block(language, code, needs) for needs, language, code in found]


def files_of(blocks):
    """Name to block, for Python blocks that are files."""
    return {block.file: block for block in blocks if block.language == "python" and block.file}


def commands_of(blocks):
    """The lines of shell blocks, without comments."""
    texts = [block.code.replace("\\\n", " ") for block in blocks if block.language == "bash"]
    lines = [line.split(" #")[0].strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if line]


def run(folder, *arguments, **environment):
    """Run Python in a folder and give back what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_hosted(folder, name, url, then="", **environment):
    """Run a file as it is against the stand-in; only DSPy's 20 seconds between two looks at a job are shortened.

    A process each, since the `openai` module remembers the first address that it was told; and a cache each, since
    answers of one stand-in would else be those of the next.
    """
    runner = (
        "import runpy; from dspy.clients.openai import OpenAIProvider as provider; "
        f"provider.wait_for_job.__defaults__ = (0.05,); found = runpy.run_path({name!r}, run_name='__main__'); {then}"
    )
    keys = {"OPENAI_API_KEY": "sk-stand-in", "OPENAI_BASE_URL": url, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    keys["DSPY_CACHEDIR"] = str(folder / f".cache-{name}")
    return run(folder, "-c", runner, **keys, **environment)


# Answers to the README's program


def guess(prompt):
    """An LM that is right now and then: with every other seed."""
    return reply_to(prompt.user, knows=bool(prompt.seed and prompt.seed % 2))


def reply_to(user: str, *, knows: bool) -> str:
    """Every field that the prompt asks for: copied or judged right by who knows, else always `good`; and a move."""
    asked = re.findall(r"`\[\[ ## (\w+) ## \]\]`", user)
    values = {
        "opinion": next(iter(re.findall(r"The \w+ is \w+\.", user)), "The lamp is odd."),
        "verdict": "good" if not knows or re.search(GOOD, user) else "bad",
        "action": f"PROPOSE {next(PRICES)}" if "You are RED" in user else "ACCEPT",
    }
    return chat_reply(**{name: values.get(name, f"about {name}") for name in asked if name != "completed"})


PRICES = itertools.cycle(range(30, 70))
"""Models vary their prices; if they did not, all won games would give one row, and OpenAI needs ten."""

GOOD = r"wonderful|beautiful|perfect|excellent|great|lovely"


# A stand-in for OpenAI and for vLLM


class HostedApi(Handler):
    """Chat completions, files, fine-tuning jobs, adapters loaded at run time; fine-tuned models answer right."""

    def do_POST(self):
        body = self.read()
        if self.path.endswith("/files"):
            assert b'"messages"' in body
            return self.answer({"id": "file-1", "object": "file", "bytes": len(body), "purpose": "fine-tune"})
        request = json.loads(body)
        if self.path.endswith("/jobs"):
            name = f"job-{len(self.server.jobs) + 1}"
            self.server.jobs[name] = request
            return self.answer(self.job(name))
        if self.path.endswith("/load_lora_adapter"):
            assert (Path(request["lora_path"]) / "adapter_config.json").exists()
            self.server.adapters.append(request["lora_name"])
            return self.answer({})
        if self.path.endswith("/unload_lora_adapter"):
            self.server.adapters.remove(request["lora_name"])
            return self.answer({})
        self.server.asked.add(request["model"])
        knows = request["model"].startswith("ft:") or request["model"] in self.server.adapters
        text = reply_to(request["messages"][-1]["content"], knows=knows)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return self.answer({"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
                           | {"choices": [choice], "usage": usage})  # fmt: skip

    def do_GET(self):
        if self.path.split("?")[0].endswith("/events"):
            return self.answer({"object": "list", "data": [], "has_more": False})
        if self.path.endswith("/models"):
            return self.answer({"data": [{"id": name} for name in ("Qwen/Qwen3-0.6B", *self.server.adapters)]})
        if self.path.split("?")[0].endswith("/jobs"):
            return self.answer({"object": "list", "data": [self.job(name) for name in self.server.jobs]})
        return self.answer(self.job(self.path.rsplit("/", 1)[1]))

    def job(self, name):
        job = {"id": name, "object": "fine_tuning.job", "status": "succeeded", "fine_tuned_model": f"ft:{name}"}
        return job | {"training_file": self.server.jobs[name]["training_file"]}


@pytest.fixture
def hosted_api():
    with serving(HostedApi, jobs={}, asked=set(), adapters=[]) as server:
        server.url = f"{server.uri}/v1"
        yield server
