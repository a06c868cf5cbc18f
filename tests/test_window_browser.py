"""The page in a real browser: it pauses a compile that is at work, and lets it go on."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from sirius_dspy import ExperienceLibrary
from sirius_dspy.optimizer.live import read_live
from tests import ROOT
from tests.browser import IS_INSTALLED, browsing
from tests.wait import wait_until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not IS_INSTALLED, reason="Chromium or its driver is not installed"),
]

HELD_UP = """
import sys, time, dspy
from pathlib import Path
from tests import toy
from sirius_dspy.testing import ToyLM

run_dir, gate = map(Path, sys.argv[1:])

def skill(prompt):
    while prompt.asks_for("doubled") and int(prompt.field("number")) >= 2 and not gate.exists():
        time.sleep(0.01)
    return toy.skill(prompt).replace("only", "<img src=x onerror=alert(1)> only")

dspy.configure(adapter=toy.ADAPTER)
dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
program = toy.Doubling()
program.set_lm(ToyLM(skill=skill))
toy.compiled_by(run_dir, program, num_threads=2, iterations=1)
"""
"""Until a file is there, two of the eight runs on the valset end and two more are under way."""


@contextmanager
def process(*arguments: str, **options):
    """A process in the repository, which ends with the block."""
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, text=True, **options) as child:
        try:
            yield child
        finally:
            child.terminate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def served(run_dir: Path):
    """The address of the page."""
    port = str(free_port())
    with process("-m", "sirius_dspy.cli", "ui", str(run_dir), "--port", port, stdout=subprocess.PIPE) as server:
        url = server.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{port}"
        yield url, server


def num_runs(run_dir: Path) -> int:
    with ExperienceLibrary.existing(run_dir / "library.sqlite") as library:
        return library.count()


def press(browser, button: str) -> None:
    """As a user does who has no mouse."""
    browser.run(f"document.getElementById('{button}').focus()")
    browser.press("\ue007")


def test_the_page_pauses_a_compile_and_lets_it_go_on(browser, tmp_path):
    run_dir, gate = tmp_path / "run", tmp_path / "gate"
    with process("-c", HELD_UP, str(run_dir), str(gate)) as work:
        wait_until(lambda: (live := read_live(run_dir)) is not None and live.position == 0, 60)
        with served(run_dir) as (url, server):
            browser.resize(400, 900)
            browser.open(url)
            wait_until(lambda: browser.text("#state") == "Running")
            press(browser, "pause")
            wait_until(lambda: browser.text("#state") == "Pausing: 2 in flight")
            gate.touch()
            wait_until(lambda: browser.text("#state") == "Paused")
            updated = read_live(run_dir).updated
            wait_until(lambda: read_live(run_dir).updated > updated + 1.5)
            assert num_runs(run_dir) == 4  # those in flight were kept, and no other one began
            wait_until(lambda: "4 of 8" in browser.run("return document.querySelector('[aria-current]').innerText"))
            assert browser.run("return document.activeElement.id") == "pause"  # refreshing left the focus alone
            assert browser.run("return document.documentElement.scrollWidth") == 400  # nothing runs out of a phone
            press(browser, "go-on")
            wait_until(lambda: browser.text("#state") == "Finished")
            assert work.wait(20) == 0
            wait_until(lambda: "100.0 %" in browser.text("#scores"))
            assert browser.run("return document.querySelectorAll('#trajectories article').length") == 4
            assert "<img src=x onerror=alert(1)>" in browser.text("#trajectories")
            assert browser.run("return document.images.length") == 0  # what an LM wrote is no markup
            assert browser.run("return document.getElementById('pause').ariaDisabled") == "true"
            server.terminate()
            server.wait(20)
            wait_until(lambda: browser.text("#connection").startswith("No connection since"))
    assert (read_live(run_dir).state, num_runs(run_dir)) == ("finished", 36)
