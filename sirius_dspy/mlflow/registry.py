"""Registers a compiled program and its agents in MLflow's model registry.

What is stored is our own checkpoint with the weights inside: nothing is pickled, and no key is written.
`sirius_dspy.load("models:/NAME@champion")` brings the program back, and `mlflow models serve` answers with it.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy.checkpoint import save, save_agent, verify
from sirius_dspy.checkpoint.download import MODEL_ID
from sirius_dspy.checkpoint.manifest import Manifest
from sirius_dspy.checkpoint.naming import Build, importable_path
from sirius_dspy.errors import CheckpointError
from sirius_dspy.files import file_name
from sirius_dspy.mlflow.files import write_agent, write_program
from sirius_dspy.mlflow.lineage import NOTE
from sirius_dspy.mlflow.names import agent_name, clean, slug
from sirius_dspy.mlflow.store import experiment_id, open_client
from sirius_dspy.optimizer.results import CompileResult
from sirius_dspy.report import Report
from sirius_dspy.report.headline import summary


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: int
    model_id: str
    """MLflow's id of the logged model that holds the files."""
    alias: str | None = None
    agents: Mapping[str, Registered] = field(default_factory=dict)
    """Agent name to its own entry."""

    @property
    def uri(self) -> str:
        """The address of exactly this version; an alias may move on."""
        return f"models:/{self.name}/{self.version}"


def register(
    program: dspy.Module | str | Path,
    name: str,
    *,
    alias: str | None = "champion",
    agents: bool = True,
    run_id: str | None = None,
    experiment: str | None = "sirius_dspy",
    tracking_uri: str | None = None,
    build: Build | None = None,
    code_paths: Sequence[str | Path] = (),
    tags: Mapping[str, Any] | None = None,
) -> Registered:
    """Register a compiled program as a new version in MLflow's model registry, and each of its agents beside it.

    All files are stored before an alias moves, so that an alias never names a version that is not whole.

    Args:
        program: A compiled program, or the folder of a checkpoint that `sirius_dspy.save` wrote.
        name: Name of the registered model, which is created if necessary. An agent is `NAME-AGENT`.
        alias: Alias that is moved to the new versions; `None` for none.
        agents: Whether to register the agents as well, which stores their weights a second time.
        run_id: The MLflow run of the compile, e.g. `tracker.run_id`; its experiment is used.
        experiment: Name of the experiment for the files, without a `run_id`; `None` is the one selected in MLflow.
        tracking_uri: Address of the store; `None` takes MLflow's current one.
        build: The program's class, or a function that builds it, for servers: they import and call it, so it is code
            that you trust. By default the class of `program`. A folder is data and names no code: without `build`, what
            is registered from one can be loaded, but not served.
        code_paths: Files and packages that `build` is imported from, to be stored with it; not needed where it is
            installed. Whoever can read the model can read them.
        tags: Tags of the new versions.

    Raises:
        CheckpointError: The program cannot be saved, or `build` cannot be imported elsewhere.
    """
    served = _find_served(program, build)
    with _checkpoint(program) as folder, tempfile.TemporaryDirectory(prefix="sirius-register-") as temporary:
        manifest = verify(folder)
        client = open_client(tracking_uri)
        place = client.get_run(run_id).info.experiment_id if run_id else experiment_id(client, experiment)
        desk = _Desk(client, str(place), run_id, Path(temporary), {**_result_tags(manifest), **(tags or {})})
        parts = {
            agent: desk.store_agent(f"{name}-{agent_name(agent)}", agent, folder, manifest)
            for agent in (manifest.agents if agents else ())
        }
        whole = desk.store_program(name, folder, manifest, served, code_paths, parts)
        entries = {agent: desk.register(part, alias) for agent, part in parts.items()}
        entry = desk.register(whole, alias, entries)
        desk.point(alias, [*entries.values(), entry])
        return entry


@dataclass(frozen=True)
class _Stored:
    """A logged model that is not in the registry yet."""

    name: str
    model_id: str
    location: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class _Desk:
    """Stores logged models and registers them, with one client."""

    client: Any
    experiment_id: str
    run_id: str | None
    temporary: Path
    tags: Mapping[str, Any]

    def store_program(
        self,
        name: str,
        checkpoint: Path,
        manifest: Manifest,
        served: str | None,
        code_paths: Sequence[str | Path],
        parts: Mapping[str, _Stored],
    ) -> _Stored:
        """Store the program, with the ids of its agents' models."""
        lms = {f"lm.{agent}": entry.lm.model for agent, entry in manifest.agents.items()}
        params = {"program": manifest.program, "adapter": manifest.adapter.class_path, **lms}
        links = {f"sirius.agent_model.{agent}": part.model_id for agent, part in parts.items()}
        with self._new(name, "sirius-program", params, {"sirius.level": "program", NOTE: _note(manifest), **links}) as (
            stored,
            files,
        ):
            write_program(files, checkpoint, manifest, served=served, model_id=stored.model_id, code_paths=code_paths)
        return stored

    def store_agent(self, name: str, agent: str, checkpoint: Path, manifest: Manifest) -> _Stored:
        """Store one agent's part of the checkpoint."""
        entry = manifest.agents[agent]
        params = {"agent": agent, "lm": entry.lm.model, "predictors": ", ".join(entry.predictors)}
        note = f"Agent {agent}: the LM {entry.lm.model}. {_note(manifest)}"
        tags = {"sirius.level": "agent", "sirius.agent": agent, NOTE: note}
        with self._new(name, "sirius-agent", params, tags) as (stored, files):
            write_agent(
                files, save_agent(checkpoint, agent, self.temporary / file_name(name)), model_id=stored.model_id
            )
        return stored

    def register(
        self, stored: _Stored, alias: str | None, agents: Mapping[str, Registered] | None = None
    ) -> Registered:
        """Make a stored model a version of its name."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(stored.name, description=_ABOUT[stored.tags["sirius.level"]])
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {**stored.tags, MODEL_ID: stored.model_id}
        # Only a server asks for the model; without one, MLflow would look for it in its default store.
        model_id = stored.model_id if self.client.tracking_uri.startswith("http") else None
        version = self.client.create_model_version(
            stored.name,
            stored.location,
            run_id=self.run_id,
            tags=tags,
            model_id=model_id,
            description=stored.tags[NOTE],
        )
        return Registered(stored.name, int(version.version), stored.model_id, alias, agents or {})

    def point(self, alias: str | None, entries: Sequence[Registered]) -> None:
        """Move the alias to the new versions; the program's comes last."""
        for entry in entries if alias else ():
            self.client.set_registered_model_alias(entry.name, alias, str(entry.version))

    @contextmanager
    def _new(
        self, name: str, kind: str, params: Mapping[str, Any], tags: Mapping[str, Any]
    ) -> Iterator[tuple[_Stored, Path]]:
        """A logged model and a folder to fill; with the block's end the folder is uploaded and the model ready."""
        all_tags = clean({**self.tags, **tags})
        model = self.client.create_logged_model(
            self.experiment_id,
            slug(name),
            source_run_id=self.run_id,
            tags=all_tags,
            params=clean(params),
            model_type=kind,
        )
        with tempfile.TemporaryDirectory(dir=self.temporary) as folder:
            try:
                files = Path(folder) / "model"
                yield _Stored(name, str(model.model_id), model.artifact_location, all_tags), files
                self.client.log_model_artifacts(model.model_id, str(files))
            except BaseException:
                self.client.finalize_logged_model(model.model_id, "FAILED")
                raise
        self.client.finalize_logged_model(model.model_id, "READY")


@contextmanager
def _checkpoint(program: dspy.Module | str | Path) -> Iterator[Path]:
    """The folder of a checkpoint, written for a moment if the program is given."""
    if isinstance(program, str | Path):
        yield Path(program)
        return
    with tempfile.TemporaryDirectory(prefix="sirius-checkpoint-") as temporary:
        yield save(program, Path(temporary) / "checkpoint")


_ABOUT = {
    "program": "A program that SiriuS compiled, with the weights of its agents. Load it with "
    "`sirius_dspy.load(uri, program=...)`.",
    "agent": "The LM of one agent of a program that SiriuS compiled. Load it with "
    "`sirius_dspy.mlflow.load_agent(uri)`.",
}
"""What a registered model is, by its level."""


def _results(manifest: Manifest) -> CompileResult | None:
    """The results of the compile; `None` for a program that was not compiled."""
    return manifest.results if isinstance(manifest.results, CompileResult) else None


def _note(manifest: Manifest) -> str:
    """What a version is: the program and its score."""
    results, name = _results(manifest), manifest.program.rpartition(":")[2]
    if results is None:
        return f"The program {name}."
    scores = summary(Report(results))
    return f"The program {name} of the compile {results.run}" + (f": {scores}." if scores else ".")


def _result_tags(manifest: Manifest) -> dict[str, Any]:
    """Where a program came from, by the words that the runs of its compile have as tags."""
    results = _results(manifest)
    if results is None:
        return {}
    tags = {
        "sirius.run": results.run,
        "sirius.best_iteration": results.best_iteration,
        "sirius.best_score": results.best_score,
    }
    return {name: value for name, value in tags.items() if value is not None}


def _find_served(program: dspy.Module | str | Path, build: Build | None) -> str | None:
    """Return what a server imports and calls to build the program; `None` if it is unknown."""
    if build is not None:
        return importable_path(build)
    if isinstance(program, str | Path):
        return None
    path = importable_path(type(program))
    try:
        inspect.signature(type(program).__init__).bind(program)  # of the class itself DSPy hides it
    except TypeError as error:
        raise CheckpointError(
            f"The program class {path!r} cannot be built without arguments: {error}. Pass a function that builds the "
            "program: `register(program, name, build=...)`."
        ) from error
    return path
