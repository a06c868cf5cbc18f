"""The events of one compile as a tree of MLflow runs: compile > iteration-N > finetune-AGENT.

The root run has the metrics to compare, as curves over the iterations. Tags identify the runs, so resumed compiles and
repeated writes use the same runs: `sirius.run`, `sirius.level`, `sirius.iteration`, `sirius.agent`.
"""

from __future__ import annotations

import hashlib
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from sirius_dspy.checkpoint.download import without_password
from sirius_dspy.files import file_name
from sirius_dspy.mlflow.curves import Point
from sirius_dspy.mlflow.lineage import NOTE, Lineage
from sirius_dspy.mlflow.names import slug
from sirius_dspy.mlflow.results import copy_library, copy_text, make_report, sqlite_file
from sirius_dspy.mlflow.sample import RepairStory
from sirius_dspy.mlflow.store import Connection, DataRef, Store, origin
from sirius_dspy.mlflow.traces import Traces, repair_span, rollout_span
from sirius_dspy.mlflow.values import (
    SCORE,
    end_tags,
    identity_tags,
    stage_metrics,
    start_params,
    start_tags,
    total_metrics,
    usage_metrics,
)
from sirius_dspy.redact import hide_keys, redact
from sirius_dspy.report import Report, render_markdown
from sirius_dspy.report.headline import summary
from sirius_dspy.tracking.events import CompileEnded, CompileStarted, Curated, Evaluated, IterationEnded, Trained
from sirius_dspy.trajectory import Trajectory, digest

STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_MAX_NOTE = 4000
"""Characters of a run's description; MLflow's tags take 5000."""


class Recorder:
    """Writes one compile; every method may be called again after it failed, and then goes on where it stopped.

    One child is open at a time: an iteration, and inside it one fine-tune that is written as a whole when its job has
    ended. Children that an earlier life of a resumed compile finished are complete and left as they are.

    Args:
        event: Description of the compile.
        connection: Where to write; used from one thread.
        run_name: Name of the root run; `None` is the program and the compile's id, and in the end its score.
        parent: The run of the caller that this compile is a part of.
        log_library: Whether the library becomes an artifact.
    """

    def __init__(
        self,
        event: CompileStarted,
        connection: Connection,
        *,
        run_name: str | None,
        parent: str | None,
        log_library: bool,
    ) -> None:
        self.root = ""
        self._compile = event
        self._connection = connection
        self._run_name = run_name
        self._parent = parent
        self._log_library = log_library
        self._look_first = event.resumed  # whether runs may be there that this object knows nothing of
        self._iterations: dict[int, str | None] = {}
        self._finetunes: dict[tuple[int, str], str | None] = {}
        self._open_iteration: str | None = None
        self._scores: dict[int, float] = {}
        self._curated: dict[tuple[int, str], tuple[Curated, DataRef]] = {}
        self._agents: dict[int, dict[str, tuple[str, str]]] = {}
        self._lineage = Lineage(event.run, connection, resumed=event.resumed)
        self._val = DataRef("val", digest(list(event.valset)))

    @property
    def store(self) -> Store:
        """Where to write."""
        return self._connection.store

    @property
    def _first_name(self) -> str:
        """The name of the root run until there is a score."""
        return self._run_name or f"{self._compile.program or 'compile'}-{self._compile.run[:8]}"

    @property
    def how_to_open(self) -> str:
        """The address of the root run, or the command that shows its store."""
        uri = without_password(self.store.client.tracking_uri)
        if uri.startswith(("http://", "https://")):
            return hide_keys(f"{uri.rstrip('/')}/#/experiments/{self.store.experiment_id}/runs/{self.root}")
        return hide_keys(f"mlflow ui --backend-store-uri {shlex.quote(uri)}")

    def attempt(self, write: Callable[[], None]) -> None:
        """Do a write. After a failure, runs and models are searched for before they are created.

        A request that timed out may have succeeded.
        """
        try:
            write()
        except Exception:
            self._look_first = self._lineage.look_first = True
            raise

    def start(self, when: int) -> None:
        """Open the root run, with parameters and datasets."""
        event = self._compile
        if not self.root:
            earlier = self._earlier_root(when)
            self.root = (
                self.store.reopen(earlier)
                if earlier
                else self.store.start(self._first_name, start_tags(event), self._parent, when)
            )
            self.store.params(self.root, start_params(event), is_fresh=earlier is None)
        else:
            self.store.params(self.root, start_params(event))
        for data, rows in ((DataRef("train", digest(list(event.trainset))), event.trainset), (self._val, event.valset)):
            if rows:
                self._link_examples(data, rows)

    def iteration_started(self, number: int, when: int) -> None:
        """Open the run of an iteration."""
        self._iteration(number, when)

    def write_training_set(self, event: Curated, when: int) -> None:
        """Keep a training set as an artifact of the root run."""
        self._curated[event.iteration, event.agent] = event, DataRef(event.agent, _file_digest(event.path))
        if self._iteration(event.iteration, when):
            with tempfile.TemporaryDirectory(prefix="sirius-mlflow-") as folder:
                copied = copy_text(event.path, Path(folder), f"{file_name(event.agent)}.jsonl")
                self.store.upload(self.root, copied, f"training_sets/iteration-{event.iteration}")

    def write_fine_tune(self, event: Trained, points: Sequence[Point], when: int) -> None:
        """Write a fine-tune: its run, its loss curve, its rows, and the agent's new version."""
        losses = points if len(points) >= len(event.losses) else [(i, x, when) for i, x in enumerate(event.losses, 1)]
        run = self._finetune(event.iteration, event.agent, when - round(1000 * event.seconds), when)
        if run is None:
            return
        about = {
            "agent": event.agent,
            "base": event.base,
            "lm": event.lm,
            "iteration": event.iteration,
            "rows": event.num_rows,
        }
        self.store.params(run, about)
        self.store.curve(run, "train/loss", losses)
        self.store.metrics(run, {"train/rows": event.num_rows, "train/seconds": event.seconds}, event.iteration, when)
        data = self._link_rows(run, event, when)
        model = self._lineage.agent(run, self.root, event, about, data)
        if losses:
            final = {"train/final_loss": losses[-1][1]}
            self.store.metrics(run, final, event.iteration, when, model=model, data=data)
        self._agents.setdefault(event.iteration, {})[event.agent] = run, model
        self.store.end(run, "FINISHED", when)

    def write_score(self, event: Evaluated, when: int) -> None:
        """Start the score curve with the student's, and write what the gate saw."""
        if event.label != "program":
            if run := self._iteration(event.iteration, when):
                self.store.metrics(run, {f"gate/{event.label}": event.score}, event.iteration, when)
            return
        self._scores[event.iteration] = event.score
        if event.iteration == 0:  # later ones wait for promotion, which may score the program more than once
            self.store.metrics(self.root, {SCORE: event.score}, 0, when)

    def write_trace(self, iteration: int, story: RepairStory | Trajectory, when: int) -> None:
        """Write the trace of a repair or of a rollout."""
        run = self._iteration(iteration, when) or self.root
        agents = {name: agent for agent, names in self._compile.agents.items() for name in names}
        tags = self._tags("trace", iteration=iteration)
        traces = Traces(self.store.client.tracking_uri, self.store.experiment_id)
        if isinstance(story, Trajectory):
            traces.write(rollout_span(story, agents), story.id, run, when, {**tags, "sirius.origin": story.origin})
            return
        outcome = {"sirius.origin": "repair", "sirius.repaired": str(story.repair.repaired).lower()}
        traces.write(repair_span(story, agents), f"repair of {story.failed.id}", run, when, {**tags, **outcome})

    def iteration_ended(self, event: IterationEnded, when: int) -> None:
        """Write the headline metrics, the cost and the program's new version, and close the iteration."""
        number = event.iteration
        score = {SCORE: self._scores[number]} if number in self._scores else {}
        headline = {**score, **event.metrics, **stage_metrics(event.result.stages)}
        self.store.metrics(self.root, headline, number, when)
        run = self._iteration(number, when)
        if run is None:
            return
        self._write_scores(run, event, headline, when)
        self._close_iteration("FINISHED", when)
        self._iterations[number] = None

    def write_unfinished(self, iteration: int, agent: str, points: Sequence[Point], status: str, when: int) -> None:
        """Write the losses of a job that did not end."""
        if run := self._finetune(iteration, agent, points[0][2], when):
            self.store.curve(run, "train/loss", points)
            self.store.end(run, status, when)

    def upload_results(self, event: CompileEnded, when: int) -> None:
        """Keep library and report as artifacts of the root run."""
        with tempfile.TemporaryDirectory(prefix="sirius-mlflow-") as name:
            folder = Path(name)
            file = sqlite_file(self._compile.library_url)
            library = copy_library(file, folder / "library.db") if file else None
            if library and self._log_library:
                self.store.upload(self.root, library, "library")
            for path in make_report(event.results, folder / "report", library, _day(when)):
                self.store.upload(self.root, path, "report")

    def end(self, event: CompileEnded, when: int) -> None:
        """Write how the compile ended, and close open runs."""
        status = STATUS.get(event.status, "FAILED")
        try:
            self._close_iteration(status, when)
            self._write_ending(event, when)
        finally:  # a value that MLflow refuses must not leave the run open
            self.store.end(self.root, status, when)

    def _write_ending(self, event: CompileEnded, when: int) -> None:
        results = event.results
        self.store.metrics(self.root, total_metrics(results), results.best_iteration or 0, when)
        self.store.tags(self.root, end_tags(results, redact(event.error)))
        report = Report(results, date=_day(when))
        if headline := summary(report):
            self.store.tags(self.root, {"sirius.score": headline, NOTE: hide_keys(render_markdown(report))[:_MAX_NOTE]})
            if self._run_name is None:
                self.store.rename(self.root, f"{results.program or self._first_name}: {headline}")

    # Runs

    def _earlier_root(self, when: int) -> Any | None:
        """The root run of an earlier life, or of a request that failed after it had been obeyed."""
        if self._compile.resumed and (earlier := self.store.find(self._tags("compile"))):
            return earlier
        return self.store.find(self._tags("compile"), started_at=when) if self._look_first else None

    def _iteration(self, number: int, when: int) -> str | None:
        """The open run of this iteration, made at need; `None` for 0, which is the root's, and for one that ended."""
        if number == 0:
            return None
        if number not in self._iterations:
            self._close_iteration("FINISHED", when)
            tags = self._tags("iteration", iteration=number)
            run, finished = self._child(f"iteration-{number}", tags, self.root, when)
            self._iterations[number] = None if finished else run
            self._open_iteration = None if finished else run
        return self._iterations[number]

    def _finetune(self, iteration: int, agent: str, started_at: int, when: int) -> str | None:
        """The open run of a fine-tune; `None` for one that an earlier life has finished."""
        parent = self._iteration(iteration, when)
        if parent is None:
            return None
        if (iteration, agent) not in self._finetunes:
            tags = self._tags("finetune", iteration=iteration, agent=agent)
            run, finished = self._child(f"finetune-{agent}", tags, parent, started_at)
            self._finetunes[iteration, agent] = None if finished else run
            if finished and (model := self._lineage.find(run)):
                self._agents.setdefault(iteration, {})[agent] = run, model
        return self._finetunes[iteration, agent]

    def _child(self, name: str, tags: Mapping[str, str], parent: str, started_at: int) -> tuple[str, bool]:
        """The run with these tags, made or opened again, and whether it is finished."""
        earlier = self.store.find({**tags, "mlflow.parentRunId": parent}) if self._look_first else None
        if earlier is None:
            return self.store.start(name, tags, parent, started_at), False
        if earlier.info.status == "FINISHED":
            return str(earlier.info.run_id), True
        return self.store.reopen(earlier), False

    def _close_iteration(self, status: str, when: int) -> None:
        if self._open_iteration:
            self.store.end(self._open_iteration, status, when)
            self._open_iteration = None

    def _write_scores(self, run: str, event: IterationEnded, headline: Mapping[str, float], when: int) -> None:
        """Write the headline on the iteration and the program's version, and score and cost on those of the agents."""
        number, program = event.iteration, self._lineage.program(run, self.root, event.result)
        scored = {SCORE: headline[SCORE]} if SCORE in headline else {}
        others = {name: value for name, value in headline.items() if name != SCORE}
        self.store.metrics(run, scored, number, when, model=program, data=self._val)
        self.store.metrics(run, others, number, when, model=program)
        for agent, (finetune, model) in self._agents.get(number, {}).items():
            if agent in self._compile.agents:  # the critic is none
                self.store.metrics(finetune, scored, number, when, model=model, data=self._val)
            if agent in event.result.agents:
                cost = usage_metrics("cost", event.result.agents[agent].usage)
                self.store.metrics(finetune, cost, number, when, model=model)

    # Datasets

    def _link_examples(self, data: DataRef, rows: Sequence[Mapping[str, Any]]) -> None:
        source = {"tags": origin()}
        self.store.dataset(
            self.root, data, data.name, num_rows=len(rows), source_type="code", source=source, columns=rows[0]
        )

    def _link_rows(self, run: str, event: Trained, when: int) -> DataRef | None:
        """Make the training set an input of its fine-tune."""
        if (event.iteration, event.agent) not in self._curated:
            return None
        curated, data = self._curated[event.iteration, event.agent]
        dropped = {f"curate/dropped/{slug(reason)}": count for reason, count in curated.dropped.items()}
        self.store.metrics(run, dropped, curated.iteration, when)
        source = {"uri": str(curated.path)}
        self.store.dataset(run, data, "finetune", num_rows=curated.num_rows, source_type="local", source=source)
        return data

    def _tags(self, level: str, *, iteration: int | None = None, agent: str | None = None) -> dict[str, str]:
        return identity_tags(self._compile.run, level, iteration=iteration, agent=agent)


def _day(when: int) -> date:
    return datetime.fromtimestamp(when / 1000, UTC).date()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
