"""vLLM: one server, an adapter for each agent, against a stand-in that has vLLM's traps."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_dspy.errors import (
    AdapterError,
    MissingDependencyError,
    RolloutError,
    SettingsError,
    TimeLimitError,
    TrainingError,
    UnpreparedProgramError,
)
from sirius_dspy.vllm import VLLMLM, VLLMServer
from sirius_dspy.vllm.canary import Canary
from sirius_dspy.vllm.server import adapter_name
from tests import ROOT
from tests.fake_vllm import BASE_NATS, FakeVLLM
from tests.wait import wait_until


@pytest.fixture
def fake():
    return FakeVLLM(reply=lambda body: f"from {body['model']}")


@pytest.fixture
def server(fake):
    with fake.serving() as url:
        yield VLLMServer("base", api_base=url)


@pytest.fixture
def executable(tmp_path):
    """A command that behaves like `vllm`."""
    path = tmp_path / "bin" / "vllm"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests" / "fake_vllm.py"} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def write_adapter(folder: Path, nats=-0.1, replies=None, canary=True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    weights = json.dumps({"nats": nats, "replies": replies or {}})
    (folder / "adapter_model.safetensors").write_text(weights, encoding="utf-8")
    if canary:
        Canary((1, 2), (3, 4), (nats, nats), (BASE_NATS, BASE_NATS)).write(folder)
    return folder


def lm_of(server: VLLMServer, agent: str, folder: Path) -> VLLMLM:
    return VLLMLM(server, num_retries=0).with_adapter(adapter_name(agent, server.name, folder), folder)


def ends(pid: int) -> bool:
    """Whether a process has ended, or only waits to be read by init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def pids_in(log: Path) -> list[int]:
    return [int(line.split()[1]) for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("pid ")]


def group_of(pid: int) -> list[int]:
    """The processes of a server: all that share its process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pid:
            found.append(int(path.parent.name))
    return found


# Routing


def test_each_lm_answers_with_its_own_weights_in_one_batch(server, tmp_path):
    base = VLLMLM(server)
    lms = [base] + [lm_of(server, name, write_adapter(tmp_path / name)) for name in ("solver", "judge")]
    for lm in lms:
        lm.launch()
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda lm: lm("hello")[0], lms * 4))
    assert answers == [f"from {lm.served_name}" for lm in lms] * 4
    assert asyncio.run(lms[1].acall("hello"))[0] == f"from {lms[1].served_name}"
    assert len({lm.model for lm in lms}) == 3


def test_a_copy_with_other_settings_uses_the_same_weights(server, tmp_path):
    lm = lm_of(server, "solver", write_adapter(tmp_path / "a"))
    lm.launch()
    assert lm.copy(temperature=0.0)("x") == [f"from {lm.served_name}"]


# Names


@settings(max_examples=25)
@given(
    agents=st.lists(st.text(max_size=12), min_size=2, max_size=2),
    nats=st.lists(st.floats(-9, -0.1), min_size=2, max_size=2),
)
def test_a_name_stands_for_one_content(tmp_path_factory, agents, nats):
    folders = [write_adapter(tmp_path_factory.mktemp("adapter"), value) for value in nats]
    names = [adapter_name("agent", "base", folder) for folder in folders]
    assert (names[0] == names[1]) == (nats[0] == nats[1])
    assert adapter_name("agent", "other base", folders[0]) != names[0]
    for agent in agents:
        name = adapter_name(agent, "base", folders[0])
        assert name.endswith(names[0].removeprefix("agent"))
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_new_weights_in_the_same_folder_get_a_new_name_and_are_not_stale(server, fake, tmp_path):
    first = lm_of(server, "solver", write_adapter(tmp_path / "a", -0.1, {"hello": "old"}))
    first.launch()
    second = lm_of(server, "solver", write_adapter(tmp_path / "a", -1.0, {"hello": "new"}))
    second.launch()
    assert (first("hello"), second("hello")) == (["old"], ["new"])
    assert len(set(fake.loads)) == len(fake.loads) == 2


def test_launching_again_loads_nothing(server, fake, tmp_path):
    lm = lm_of(server, "solver", write_adapter(tmp_path / "a"))
    lm.launch()
    lm.launch()
    assert fake.loads == [lm.served_name]


def test_killing_unloads_and_the_base_stays(server, fake, tmp_path):
    lm = lm_of(server, "solver", write_adapter(tmp_path / "a"))
    lm.launch()
    lm.kill()
    lm.kill()
    VLLMLM(server).kill()
    assert (fake.unloads, fake.adapters) == ([lm.served_name], {})
    assert VLLMLM(server)("x") == ["from base"]


# Never while calls are in flight


def test_an_adapter_waits_for_calls_in_flight_and_holds_back_new_ones(server, fake, tmp_path):
    lm, base = lm_of(server, "solver", write_adapter(tmp_path / "a")), VLLMLM(server)
    fake.hold.clear()
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(base, f"{number}") for number in range(3)]
        wait_until(lambda: fake.in_flight == 3)
        launch = threads.submit(lm.launch)
        wait_until(lambda: server.calls._is_closed)
        late = threads.submit(base, "late")
        assert not fake.loads
        fake.hold.set()
        launch.result(20)
        assert [call.result(20) for call in (*calls, late)] == [["from base"]] * 4
    assert fake.loads == [lm.served_name]
    assert fake.changed_in_flight == []


@settings(max_examples=8)
@given(st.lists(st.sampled_from(["call", "acall", "load", "kill"]), min_size=4, max_size=24))
def test_no_mix_of_calls_and_changes_loads_while_calls_are_in_flight(tmp_path_factory, actions):
    fake = FakeVLLM()
    folder = write_adapter(tmp_path_factory.mktemp("adapter"))
    with fake.serving() as url, ThreadPoolExecutor(6) as threads:
        server = VLLMServer("base", api_base=url)
        base, lm = VLLMLM(server, num_retries=0), lm_of(server, "solver", folder)
        does = {"call": lambda: base("x"), "acall": lambda: asyncio.run(base.acall("x"))}
        does |= {"load": lambda: server.load(lm.served_name, folder), "kill": lm.kill}
        for done in [threads.submit(does[action]) for action in actions]:
            done.result(30)
    assert fake.changed_in_flight == []
    assert server.calls.in_flight == 0


def test_a_call_that_does_not_end_is_an_error_and_the_adapter_is_not_loaded(fake, tmp_path):
    with fake.serving() as url, ThreadPoolExecutor(1) as threads:
        server = VLLMServer("base", api_base=url, load_s=0.1)
        fake.hold.clear()
        call = threads.submit(VLLMLM(server), "x")
        wait_until(lambda: fake.in_flight == 1)
        with pytest.raises(TimeLimitError, match="1 calls to the server"):
            lm_of(server, "solver", write_adapter(tmp_path / "a")).launch()
        assert fake.loads == []
        fake.hold.set()
        call.result(20)
        VLLMLM(server)("x")


def test_a_call_that_failed_is_no_longer_in_flight(server):
    with pytest.raises(Exception, match="does not exist"):
        VLLMLM(server, model="openai/nobody", num_retries=0)("x")
    assert server.calls.in_flight == 0


# The canary


def test_a_canary_catches_an_adapter_that_is_loaded_but_not_used(server, fake, tmp_path):
    fake.ignores = True
    with pytest.raises(AdapterError, match="answers with the base weights"):
        lm_of(server, "solver", write_adapter(tmp_path / "a")).launch()
    assert fake.adapters == {}


def test_a_canary_catches_old_weights_under_the_same_name(server, fake, tmp_path):
    base = VLLMLM(server)
    base.with_adapter("solver", write_adapter(tmp_path / "old", nats=-9.0)).launch()
    server.unload("solver")
    with pytest.raises(AdapterError, match="other weights"):
        base.with_adapter("solver", write_adapter(tmp_path / "new", nats=-0.1)).launch()


def test_other_arithmetic_on_the_server_is_no_other_weights(server, tmp_path):
    folder = write_adapter(tmp_path / "a", nats=-0.5)
    Canary((1,), (3, 4), (-0.55, -0.4), (BASE_NATS, BASE_NATS)).write(folder)
    lm_of(server, "solver", folder).launch()


def test_what_the_server_cannot_load_is_an_error(server, tmp_path):
    folder = write_adapter(tmp_path / "a")
    lm = lm_of(server, "solver", folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(TrainingError, match="no adapter in"):
        lm.launch()


# The process


def test_the_first_call_starts_the_server_and_stop_ends_all_its_processes(executable, tmp_path):
    server = VLLMServer("hub/base", executable=executable, log=tmp_path / "server.log", start_s=60)
    try:
        assert VLLMLM(server, num_retries=0)("hello") == ["?"]
        (pid,) = pids_in(server.log)
        group = group_of(pid)
        assert len(group) == 2
    finally:
        server.stop()
    wait_until(lambda: all(map(ends, group)))


def test_a_dead_server_is_an_error_with_its_log_and_a_new_one_takes_the_adapter_again(executable, tmp_path):
    with VLLMServer("hub/base", executable=executable, log=tmp_path / "server.log", start_s=60) as server:
        lm = lm_of(server, "solver", write_adapter(tmp_path / "a", replies={"hello": "learned"}))
        lm.launch()
        assert lm("hello") == ["learned"]
        os.kill(pids_in(server.log)[0], signal.SIGKILL)
        wait_until(lambda: not server.is_running)
        with pytest.raises(RolloutError, match=r"ended with exit code 137(.|\n)*same `compile` again"):
            lm("hello")
        lm.launch()
        assert lm("hello") == ["learned"]


def test_a_server_that_cannot_start_says_why(executable, tmp_path):
    server = VLLMServer("hub/base", executable=executable, options=["--fail"], start_s=60)
    with pytest.raises(UnpreparedProgramError, match=r"exit code 1(.|\n)*no memory for the KV cache"):
        server.start()


def test_a_server_that_does_not_get_ready_is_ended(executable, tmp_path):
    server = VLLMServer("hub/base", executable=executable, options=["--hang"], start_s=1)
    with pytest.raises(UnpreparedProgramError, match="was not ready within 1 s"):
        server.start()
    assert not server.is_running


def test_a_missing_command_is_an_error_with_an_install_line():
    with pytest.raises(MissingDependencyError, match="pip install vllm"):
        VLLMServer("hub/base", executable="no-such-vllm").start()


def test_a_server_of_ones_own_must_answer_serve_the_base_and_allow_adapters(fake, tmp_path):
    with pytest.raises(UnpreparedProgramError, match="does not list its models"):
        VLLMServer("base", api_base="http://127.0.0.1:9/v1").start()
    with fake.serving() as url:
        with pytest.raises(UnpreparedProgramError, match="does not serve 'other'"):
            VLLMServer("other", api_base=url).start()
        fake.load = lambda name, path: (404, {"detail": "Not Found"})
        server = VLLMServer("base", api_base=url)
        with pytest.raises(TrainingError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
            lm_of(server, "solver", write_adapter(tmp_path / "a")).launch()


def test_settings_are_checked():
    with pytest.raises(SettingsError, match="`max_loras` of VLLMServer is 0"):
        VLLMServer("base", max_loras=0)


PARENT = """
import sys, threading
from sirius_dspy.vllm import VLLMServer
server = VLLMServer("hub/base", executable=sys.argv[1], log=sys.argv[2], start_s=60)
server.start()
print("ready", flush=True)
threading.Event().wait()
"""


def test_no_process_outlives_a_parent_that_is_killed(executable, tmp_path):
    log = tmp_path / "server.log"
    command = [sys.executable, "-c", PARENT, str(executable), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as parent:
        try:
            assert parent.stdout.readline() == "ready\n"
            group = group_of(pids_in(log)[0])
            assert len(group) == 2
        finally:
            parent.kill()
    wait_until(lambda: all(map(ends, group)))
