"""What tests of executors ship to other processes; `python -m tests.shipped RUN_DIR LOG` compiles in one of its own.

With the address of a Ray cluster as a third argument, its workers are there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.exceptions import LMRateLimitError

from sirius_dspy import ProcessExecutor, ProviderTrainer, RayExecutor, Tracker, TrainingRequest
from sirius_dspy.testing import Prompt, ToyLM
from tests import toy

SEAT = {"num_cpus": 0, "resources": {"seat": 1}}
"""What a worker on a Ray cluster reserves."""

NUMBER = re.compile(r"## number ## \]\]\s*(\d+)")


@dataclass(frozen=True)
class Noted:
    """The skill of the toy LM, which notes every request, and can go wrong when it doubles a number."""

    log: Path
    slow: int | None = None
    """This number takes long."""
    seconds: float = 60.0
    deadly: int | None = None
    """At this number the process is killed, the first time."""
    poison: int | None = None
    """At this number the process ends, every time."""
    busy: int | None = None
    """At this number the server is too busy, the first time, and asks to wait for a while."""
    stuck: int | None = None
    """At this number it waits for its machine to be lost, the first time."""
    latency_s: float = 0.0

    def __call__(self, prompt: Prompt) -> str:
        asked = [prompt.model, prompt.system, prompt.user, prompt.temperature, prompt.seed]
        self.note("asked", asked)
        number = int(prompt.field("number") or -1) if prompt.asks_for("doubled") else -1
        if number == self.deadly and self.is_first("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.poison:
            os._exit(1)
        if number == self.busy and self.is_first("busy"):
            raise LMRateLimitError("busy", model="toy", status=429, retry_after=200)
        if number == self.stuck:
            self.await_loss("collection")
        time.sleep(self.seconds if number == self.slow else self.latency_s)
        reply = toy.skill(prompt)
        self.note("answered", asked)
        return reply

    def is_first(self, name: str) -> bool:
        try:
            os.close(os.open(f"{self.log}.{name}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def await_loss(self, stage: str) -> None:
        """Note the machine of a Ray cluster that this is, and wait for its end; the first time only."""
        if self.is_first(stage):
            import ray

            self.machine_of(stage).write_text(ray.get_runtime_context().get_node_id())
            time.sleep(100)

    def machine_of(self, stage: str) -> Path:
        return Path(f"{self.log}.{stage}.machine")

    def note(self, kind: str, asked: Any) -> None:
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, (json.dumps([kind, os.getpid(), asked]) + "\n").encode())
        os.close(file)

    def requests(self, kind: str = "asked") -> Counter[str]:
        return Counter(json.dumps(asked) for found, _, asked in self._lines() if found == kind)

    def processes(self) -> set[int]:
        return {process for _, process, _ in self._lines()}

    def asked_numbers(self) -> list[tuple[int, int]]:
        """The process and the number of each request to double one."""
        lines = [(process, NUMBER.search(asked[2])) for kind, process, asked in self._lines() if kind == "asked"]
        return [(process, int(found[1])) for process, found in lines if found]

    def _lines(self) -> list[Any]:
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


def team(skill: Noted) -> dspy.Module:
    program = toy.Doubling()
    program.set_lm(ToyLM(skill=skill, num_retries=0))
    return program


class LosingTrainer(ProviderTrainer):
    """Its first job reports all its steps, and waits for its machine to be lost."""

    def __init__(self, noted: Noted) -> None:
        super().__init__()
        self._noted = noted

    def train(self, request: TrainingRequest) -> dspy.LM:
        lm = super().train(request)
        self._noted.await_loss("training")
        return lm


def broken_metric(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    return float(prediction.no_such_field)


def main(run_dir: str, log: str, address: str = "") -> None:
    dspy.configure(adapter=toy.ADAPTER)
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    executor = RayExecutor(address, resources=SEAT) if address else ProcessExecutor(2)
    optimizer = toy.optimizer(Path(run_dir), tracker=Tracker(), executor=executor)
    optimizer.compile(team(Noted(Path(log), latency_s=0.2)), trainset=toy.examples(), valset=toy.examples())


if __name__ == "__main__":
    main(*sys.argv[1:])
