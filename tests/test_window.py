"""The window on a compile: what it reads, what it prints, and whom its page answers."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import socket
import subprocess
import sys
import warnings
from contextlib import closing

import dspy
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from sirius_dspy import Budget, CriticAugmenter, ExperienceLibrary, LadderAugmenter, ResampleAugmenter
from sirius_dspy.cli import app
from sirius_dspy.errors import RunMismatchError
from sirius_dspy.optimizer.hold import read_wish
from sirius_dspy.optimizer.live import read_live
from sirius_dspy.window.read import Window
from sirius_dspy.window.server import make_app
from tests import ROOT, toy
from tests.test_hold import At
from tests.wait import wait_until

HOME = "http://127.0.0.1:8765"


def cli(*arguments):
    with warnings.catch_warnings():  # the command silences some for its process
        return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A finished run, and what the page showed while it was at work, at each of three moments."""
    folder, seen = tmp_path_factory.mktemp("window") / "run", {}

    def look(event):
        seen[type(event).__name__] = shown(folder)

    tracker = At("on_repaired", 2, look)
    for hook, number in (("on_rolled_out", 11), ("on_trained", 1)):
        setattr(tracker, hook, At(hook, number, look).note)
    with dspy.context(adapter=toy.ADAPTER):
        toy.compiled_by(folder, tracker=tracker, iterations=1, budget=Budget(calls=500))
    return folder, seen


@pytest.fixture
def run_dir(compiled, tmp_path):
    return shutil.copytree(compiled[0], tmp_path / "run")


def shown(run_dir):
    answer = TestClient(make_app(Window(run_dir)), base_url=HOME).get("/state.json")
    assert answer.status_code == 200, answer.text
    return answer.json()


def now_in(view):
    return [(stage["iteration"], stage["stage"]) for stage in view["stages"] if stage["status"] == "now"]


def test_a_finished_run(run_dir):
    view = shown(run_dir)
    assert (view["program"], view["state"], view["problems"]) == ("Doubling", "finished", [])
    assert {stage["status"] for stage in view["stages"]} == {"done"}
    assert [(item["iteration"], item["score"], item["is_best"]) for item in view["scores"]] == [
        (0, 0.5, False),
        (1, 1.0, True),
    ]
    assert [round(item["low"], 3) for item in view["scores"]] == [0.215, 0.676]  # Wilson's, of 4 and 8 out of 8
    assert [(item["origin"], item["runs"], item["succeeded"]) for item in view["runs"]] == [
        ("validation", 8, 4),
        ("rollout", 16, 8),
        ("repair", 4, 4),
        ("validation", 8, 8),
    ]
    (repairs,) = view["repairs"]
    assert (repairs["runs"], repairs["repaired"], repairs["rung"]) == (4, 4, "")
    assert [(item["agent"], item["rows"], item["is_kept"]) for item in view["agents"]] == [
        ("doubler", 8, True),
        ("writer.predict", 8, True),
    ]
    assert {item["name"]: item["limit"] for item in view["spending"]}["calls"] == 500
    assert view["trajectories"][0]["origin"] == "validation"
    assert view["trajectories"][0]["steps"][0]["predictor"] == "doubler"


def test_a_running_compile(compiled):
    collecting, repairing, training = (compiled[1][name] for name in ("RolledOut", "Repaired", "Trained"))
    assert {view["state"] for view in compiled[1].values()} == {"running"}
    assert (now_in(collecting), now_in(repairing), now_in(training)) == (
        [(1, "collect")],
        [(1, "repair")],
        [(1, "train")],
    )
    validated, collected = (item["runs"] for item in collecting["runs"])
    assert (validated, 3 <= collected <= 16) == (8, True)  # runs that ended together are stored together
    assert [item["iteration"] for item in collecting["scores"]] == [0]
    assert repairing["repairs"][0]["runs"] == repairing["repairs"][0]["attempts"] == 2
    assert any(step["is_edited"] for run in repairing["trajectories"] for step in run["steps"])
    assert [(item["agent"], item["rows"], item["is_kept"]) for item in training["agents"]] == [
        ("doubler", 8, None),
        ("writer.predict", 8, None),
    ]
    spent = [{item["name"]: item["spent"] for item in view["spending"]}["calls"] for view in (collecting, training)]
    assert 0 < spent[0] < spent[1]


@pytest.mark.usefixtures("chat_adapter")
def test_each_rung_of_a_ladder_has_its_own_line(tmp_path):
    ladder = LadderAugmenter([ResampleAugmenter(), CriticAugmenter()])
    toy.compiled_by(tmp_path, iterations=1, augmenter=ladder)
    rungs = {item["rung"]: item for item in shown(tmp_path)["repairs"]}
    assert [(name, item["runs"], item["repaired"]) for name, item in rungs.items()] == [
        ("resample", 4, 0),
        ("critic", 4, 4),
    ]
    assert rungs["resample"]["attempts"] == rungs["resample"]["failed"] > 4


def test_a_run_without_the_live_file(run_dir):
    (run_dir / "live.json").unlink()
    view = shown(run_dir)
    assert (view["state"], len(view["stages"]), view["silent_s"]) == ("finished", 6, None)
    assert view["spending"][0]["spent"] > 0


@pytest.mark.parametrize("name", ["live.json", "hold.json", "stages/iteration-1.json", "stages/spending.json"])
def test_a_half_written_file_is_told_and_the_rest_shown(name, run_dir):
    (run_dir / "stages" / "results.json").unlink()  # so that the others are read
    (run_dir / name).write_text('{"iteration": 1, "sco', encoding="utf-8")
    view = shown(run_dir)
    assert len(view["problems"]) == 1
    assert os.path.basename(name) in view["problems"][0]
    assert view["scores"] or view["spending"]


def test_a_missing_library_is_told_and_the_rest_shown(run_dir):
    for name in ("library.sqlite", "library.json"):
        (run_dir / name).unlink()
    view = shown(run_dir)
    assert len(view["problems"]) == 1
    assert (view["runs"], len(view["scores"])) == ([], 2)


def test_reading_writes_nothing(run_dir):
    def contents():
        files = (path for path in run_dir.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files if not path.name.endswith(("-wal", "-shm"))}

    before = contents()
    shown(run_dir)
    assert contents() == before


def test_a_killed_compile_is_no_running_one(run_dir):
    live = json.loads((run_dir / "live.json").read_text(encoding="utf-8"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (run_dir / "live.json").write_text(json.dumps({**live, "state": "running", "process": ended.pid}), encoding="utf-8")
    assert shown(run_dir)["state"] == "gone"
    (run_dir / "live.json").write_text(json.dumps({**live, "state": "running", "host": "elsewhere", "updated": 0}))
    view = shown(run_dir)
    assert (view["state"], view["silent_s"] > 1000) == ("running", True)  # nobody here knows more


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(RunMismatchError, match="No compile has begun in"):
        Window(tmp_path)
    for command in ("watch", "ui", "pause", "resume", "stop"):
        done = cli(command, tmp_path)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "No compile" in done.stderr
    assert list(tmp_path.iterdir()) == []


# The terminal


def test_watch_once(run_dir):
    done = cli("watch", run_dir, "--once")
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "Doubling finished"
    assert "iteration 0: evaluate done" in lines
    assert "iteration 1: collect done > repair done > curate done > train done > evaluate done" in lines
    assert "1 (best) 100.0 % 67.6 to 100.0 % 8" in lines
    assert "1 rollout 16 8 50.0 %" in lines
    assert "1 - 4 4 0 0 0 0 0 0 4" in lines
    assert any(line.startswith("spent: ") and " calls of 500, " in line for line in lines)


def test_watch_as_json(run_dir):
    view = json.loads(cli("watch", run_dir, "--json").stdout)
    assert (view["state"], len(view["trajectories"])) == ("finished", 4)


# The page


@pytest.fixture
def client(run_dir):
    """A browser on this machine."""
    return TestClient(make_app(Window(run_dir)), base_url=HOME)


def token_of(client):
    return client.get("/").text.partition('name="token" content="')[2].partition('"')[0]


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/state.json"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "localhost.evil.example", "127.0.0.1@evil.example", "[", ""]
)
def test_a_foreign_host_is_refused(client, host, path):
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 403
    assert "content=" not in answer.text


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1:8765", "[::1]:9000", "LOCALHOST"])
def test_this_machine_is_answered_at_any_port(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


def test_no_other_site_may_show_or_feed_the_page(client):
    headers = client.get("/").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers
    assert "http" not in client.get("/").text.replace("http-equiv", "")  # nothing from elsewhere


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/page.html", "/../run.json"])
def test_nothing_else_is_served(client, path):
    assert client.get(path).status_code == 404


@pytest.fixture
def at_work(run_dir):
    live = read_live(run_dir)
    (run_dir / "live.json").write_text(live.model_copy(update={"state": "running"}).model_dump_json(), encoding="utf-8")
    return run_dir


def test_asking_needs_the_token_and_the_own_origin(client, at_work):
    good = {"X-Sirius-Token": token_of(client)}
    assert client.post("/ask/pause").status_code == 403
    assert client.post("/ask/pause", headers={"X-Sirius-Token": "guess"}).status_code == 403
    assert client.post("/ask/pause", headers={"X-Sirius-Token": "gu\u00e9ss".encode()}).status_code == 403
    for origin in ("http://evil.example", "null", "https://127.0.0.1:8765", "http://127.0.0.1:9999"):
        assert client.post("/ask/pause", headers={**good, "Origin": origin}).status_code == 403
    assert client.get("/ask/pause", headers=good).status_code == 405
    assert client.post("/ask/burn", headers=good).status_code == 404
    assert not (at_work / "hold.json").exists()
    assert client.post("/ask/pause", headers={**good, "Origin": HOME}).json()["wish"] == "pause"
    assert json.loads((at_work / "hold.json").read_text()) == {"wish": "pause"}
    assert client.post("/ask/stop", headers=good).json()["wish"] == "stop"
    assert client.post("/ask/go-on", headers=good).json()["wish"] is None
    assert not (at_work / "hold.json").exists()


def test_a_finished_compile_cannot_be_paused(client, run_dir):
    answer = client.post("/ask/pause", headers={"X-Sirius-Token": token_of(client)})
    assert answer.status_code == 409
    assert "No compile is at work" in answer.json()["error"]


def test_commands_ask_the_same(at_work):
    assert "No new run begins" in cli("pause", at_work).stdout
    assert json.loads((at_work / "hold.json").read_text()) == {"wish": "pause"}
    assert cli("stop", at_work).exit_code == 0
    assert json.loads((at_work / "hold.json").read_text()) == {"wish": "stop"}
    assert cli("resume", at_work).exit_code == 0
    assert not (at_work / "hold.json").exists()


def test_without_fastapi_the_extra_is_named(run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = cli("ui", run_dir, "--port", "0")
    assert done.exit_code == 1
    assert "pip install 'sirius-dspy[serve]'" in done.stderr


def test_a_taken_port_is_told(run_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = cli("ui", run_dir, "--port", taken.getsockname()[1])
    assert done.exit_code == 1
    assert "Pass another one with `--port`" in done.stderr


@pytest.mark.usefixtures("chat_adapter")
def test_a_library_elsewhere(tmp_path, url):
    """On each database, by the address that the compile noted or by one that is given."""
    run_dir = tmp_path / "run"
    with ExperienceLibrary(url) as library:
        ladder = LadderAugmenter([ResampleAugmenter(), CriticAugmenter()])
        toy.compiled_by(run_dir, iterations=1, library=library, augmenter=ladder)
    with closing(Window(run_dir, url)) as window:
        view = window.read()
    assert [(item.origin, item.runs) for item in view.runs][:2] == [("validation", 8), ("rollout", 16)]
    assert [(item.rung, item.runs, item.repaired) for item in view.repairs] == [("resample", 4, 0), ("critic", 4, 4)]
    assert (len(view.trajectories), view.problems) == (4, ())


def test_keys_of_the_terminal(at_work):
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "sirius_dspy.cli", "watch", str(at_work)]
    hold = at_work / "hold.json"
    with subprocess.Popen(command, cwd=ROOT, stdin=terminal, stdout=terminal) as watching:
        os.read(screen, 1)  # it is on the screen
        for key, is_asked in (
            (b"p", lambda: read_wish(at_work) == "pause"),
            (b"s", lambda: read_wish(at_work) == "stop"),
            (b"g", lambda: not hold.exists()),
            (b"q", lambda: watching.poll() == 0),
        ):
            os.write(screen, key)
            wait_until(lambda is_asked=is_asked: _drained(screen) and is_asked())
    os.close(terminal)
    os.close(screen)


def _drained(screen):
    """Read what was printed, so that the other side can go on."""
    while select.select([screen], [], [], 0)[0]:
        os.read(screen, 1 << 16)
    return True
