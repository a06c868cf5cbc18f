"""The models that answer: those of the backend, and those that jobs have trained."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from sirius_dspy.server.answers import ApiError
from sirius_dspy.server.backend import Backend, Weights
from sirius_dspy.server.store import Records
from sirius_dspy.server.wire import JobObject, ModelObject

_PREFIX = "openai/"
"""Trained models have it in their names. DSPy calls a trained LM as the job calls it, and without the prefix LiteLLM
takes `ft:...` for OpenAI's only if the name of one of OpenAI's own models follows."""


class Models:
    """Names of models to what the backend answers with.

    Args:
        data: The server's data folder.
        backend: Has the models to start from.
    """

    def __init__(self, data: Path, backend: Backend) -> None:
        self.weights = data / "weights"
        now = int(time.time())
        self._own = {
            name: ModelObject(id=name, created=now, owned_by="sirius-dspy", root=name) for name in backend.models
        }
        self._trained = Records(data / "models", ModelObject, "model")

    def __iter__(self) -> Iterator[ModelObject]:
        """Iterate over all models, those of the backend first. A trained one answers as long as its base is served."""
        yield from self._own.values()
        yield from (model for model in self._trained if model.root in self._own)

    def get(self, name: str) -> ModelObject:
        """Return a model, called with or without LiteLLM's prefix for servers with OpenAI's API.

        Raises:
            ApiError: There is no such model.
        """
        plain = name.removeprefix(_PREFIX)
        found = next((model for model in self if model.id.removeprefix(_PREFIX) == plain), None)
        if found is None:
            message = f"The model {name[:200]!r} does not exist. `GET /v1/models` lists those that do."
            raise ApiError(404, message, code="model_not_found", param="model")
        return found

    def weights_of(self, model: ModelObject) -> Weights:
        """Return what the backend needs to know of a model."""
        return Weights(model.root, self.folder(model.job) if model.job else None)

    def folder(self, job: str) -> Path:
        """Return the folder of the weights of a job."""
        return self.weights / job

    def remove(self, name: str) -> None:
        """Delete a trained model and its weights.

        Raises:
            ApiError: There is no such model, or it was not trained here.
        """
        model = self.get(name)
        if model.job is None:
            raise ApiError(400, f"The model {name!r} was not trained by a job, so it cannot be deleted.", param="model")
        self._trained.remove(model.id)
        shutil.rmtree(self.folder(model.job), ignore_errors=True)

    def add(self, job: JobObject, root: str) -> ModelObject:
        """Let a job's weights answer.

        Args:
            job: Whose model may have been deleted meanwhile.
            root: The model from which that one, or the job, started first.
        """
        name = f"{_PREFIX}ft:{root}:{job.user_provided_suffix or ''}:{job.id.removeprefix('ftjob-')}"
        made = ModelObject(id=name, created=int(time.time()), owned_by="local", root=root, job=job.id)
        return self._trained.put(name, made)
