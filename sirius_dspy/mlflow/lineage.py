"""The versions of agents and programs as LoggedModels, each linked to what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sirius_dspy.mlflow.names import agent_name
from sirius_dspy.mlflow.store import Connection, DataRef, Store
from sirius_dspy.mlflow.values import identity_tags
from sirius_dspy.optimizer.results import IterationResult
from sirius_dspy.tracking.events import Trained

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run or of a model."""


class Lineage:
    """Makes the LoggedModels of one compile, and finds those of an earlier call.

    Args:
        run: Id of the compile.
        connection: Where to write; used from one thread.
        resumed: Whether models of an earlier call may be there.
    """

    def __init__(self, run: str, connection: Connection, *, resumed: bool) -> None:
        self.look_first = resumed  # whether models may be there that this object knows nothing of
        self._run = run
        self._connection = connection
        self._models: dict[str, str] = {}
        self._by_lm: dict[str, str] | None = None if resumed else {}

    @property
    def _store(self) -> Store:
        return self._connection.store

    def agent(self, run_id: str, root: str, event: Trained, params: Mapping[str, Any], data: DataRef | None) -> str:
        """Make the LoggedModel of an agent's new version.

        Args:
            run_id: The run of the fine-tune.
            root: The root run, which links to the model, too.
            event: What the fine-tune gave.
            params: Of the model.
            data: The training set.

        Returns:
            The id of the model.
        """
        base = self.model_of(event.base)
        tags = {
            **identity_tags(self._run, "agent", iteration=event.iteration, agent=event.agent),
            **({"sirius.weights": str(event.weights)} if event.weights else {}),
            **({"sirius.base_model": base} if base else {}),
            **({"sirius.training_set": f"{data.name}@{data.digest}"} if data else {}),
            NOTE: f"Agent {event.agent} after iteration {event.iteration}: {event.base} fine-tuned on "
            f"{event.num_rows:,} rows, which gave {event.lm}.",
        }
        model = self._model(
            run_id,
            root,
            f"agent-{agent_name(event.agent)}",
            "sirius-agent",
            params=params,
            tags=tags,
            step=event.iteration,
            sources=[base] if base else [],
        )
        if self._by_lm is not None:
            self._by_lm[event.lm] = model
        return model

    def program(self, run_id: str, root: str, result: IterationResult) -> str:
        """Make the LoggedModel of the program after an iteration, made of the agents' versions.

        Args:
            run_id: The run of the iteration.
            root: The root run, which links to the model, too.
            result: What the iteration did.

        Returns:
            The id of the model.
        """
        lms = {f"lm.{agent}": lm for agent, lm in result.lms.items()}
        parts = {agent: model for agent, lm in result.lms.items() if (model := self.model_of(lm))}
        kept = ", ".join(agent for agent, is_kept in result.promoted.items() if is_kept) or "no agent"
        tags = {
            **identity_tags(self._run, "program", iteration=result.iteration),
            **{f"sirius.agent_model.{agent}": model for agent, model in parts.items()},
            NOTE: f"The program after iteration {result.iteration}: score {result.score:.4g} on "
            f"{result.num_val:,} validation examples; new weights were kept for {kept}.",
        }
        return self._model(
            run_id,
            root,
            "program",
            "sirius-program",
            params={"iteration": result.iteration, **lms},
            tags=tags,
            step=result.iteration,
            sources=list(dict.fromkeys(parts.values())),
        )

    def model_of(self, lm: str) -> str | None:
        """The id of the LoggedModel of an LM that this compile has trained."""
        if self._by_lm is None:
            self._by_lm = self._store.list_trained_models(self._run)
        return self._by_lm.get(lm)

    def find(self, run_id: str) -> str | None:
        """The id of the LoggedModel that a run of an earlier call made."""
        return self._store.find_model(run_id)

    def _model(self, run_id: str, root: str, *args: Any, step: int, **options: Any) -> str:
        if run_id not in self._models:
            earlier = self._store.find_model(run_id) if self.look_first else None
            self._models[run_id] = earlier or self._store.model(run_id, *args, step=step, **options)
            self._store.link_model(root, self._models[run_id], step)
        return self._models[run_id]
