"""An LM that learns by heart, through DSPy's own fine-tuning interface."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from dspy.clients.provider import Provider, TrainingJob
from dspy.clients.utils_finetune import TrainingStatus

from sirius_dspy.errors import ModelNotFoundError, TrainingError
from sirius_dspy.testing.engine import Engine, EngineLM, Prompt, UnexpectedCallError, function_at, path_of
from sirius_dspy.trajectory import digest


class ToyLM(EngineLM):
    """An LM that learns: what it was fine-tuned on it answers by heart, all else it leaves to `skill`.

    Fine-tuning is DSPy's own (`lm.finetune`, a provider, a job in a thread), so a whole compile can be tested with it.
    The memory goes by system message and last user message; demonstrations between them change nothing. New weights
    have a new id, `<base>+<hash>`, which is the same wherever the same is learnt on top of the same weights.

    Training understands `output_dir` (weights are written there, for other processes), `on_progress(step, total,
    loss)` with the share of rows not learnt yet as the loss, and `seed`, which decides what is kept of rows that answer
    one prompt differently. Other options are not used.

    Args:
        model: Id of the base, or of trained weights.
        skill: Answers what was not learnt; without it, that is an `UnexpectedCallError`. `Prompt.seed` differs between
            samples, so that it can be right once in a while.
        registry: Folder below which weights of other processes are looked for, and where weights go that are trained
            without `output_dir`; `None` takes the environment variable SIRIUS_TOY_REGISTRY, if that is set.
        fail_training: Every job fails.
        writes_weights: Whether the provider declares that it takes `output_dir`, as `ProviderTrainer` asks.
        latency_s: Seconds that each answer takes.
        kwargs: Of `dspy.LM`; the cache is off unless it is asked for.

    Raises:
        ModelNotFoundError: `model` names trained weights, and these are nowhere.
    """

    def __init__(
        self,
        model: str = "toy/base",
        skill: Callable[[Prompt], str] | None = None,
        *,
        registry: str | Path | None = None,
        fail_training: bool = False,
        writes_weights: bool = True,
        latency_s: float = 0.0,
        **kwargs: Any,
    ) -> None:
        _weights(model, registry)
        self._training = _ToyTraining(registry, fail_training, writes_weights)
        super().__init__(model, _ToyEngine(skill, registry, latency_s), provider=self._training, **kwargs)

    @property
    def memory(self) -> Mapping[tuple[str, str], str]:
        """(system, last user message) to the completion learnt for it."""
        return _weights(self.model, self._training._registry).memory

    @property
    def folder(self) -> Path | None:
        """Where the weights are on disk; `None` for a base, or weights only in this process."""
        return _weights(self.model, self._training._registry).folder

    def copy(self, **kwargs: Any) -> ToyLM:
        """See `dspy.LM.copy`; the weights of another `model` must exist."""
        if "model" in kwargs:
            _weights(kwargs["model"], self._training._registry)
        return super().copy(**kwargs)

    def dump_state(self) -> dict[str, Any]:
        """State with the path of `skill`, if it can be imported; the weights stay where they are."""
        provider = self._training
        own = {
            "skill": path_of(self.engine.skill),
            "registry": provider._registry and str(provider._registry),
            "fail_training": provider._fail_training,
            "writes_weights": provider.writes_weights,
            "latency_s": self.engine.latency_s,
        }
        return {**super().dump_state(), **own}

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> ToyLM:
        """The LM that `dump_state` described."""
        state = {**state, "skill": function_at(state.get("skill"))}
        return super().load_state(state, allow_custom_lm_class=allow_custom_lm_class)

    @classmethod
    def from_folder(cls, folder: Path, state: dict[str, Any]) -> ToyLM:
        """The LM whose weights a checkpoint holds."""
        _read_weights(state["model"], folder)
        return cls.load_state({**state, "registry": None})


class _ToyEngine(Engine):
    def __init__(
        self,
        skill: Callable[[Prompt], str] | None = None,
        registry: str | Path | None = None,
        latency_s: float = 0.0,
    ) -> None:
        super().__init__(latency_s)
        self.skill = skill
        self.registry = registry

    def answer(self, prompt: Prompt) -> str:
        learnt = _weights(prompt.model, self.registry).memory.get((prompt.system, prompt.user))
        if learnt is not None:
            return learnt
        if self.skill is None:
            raise UnexpectedCallError(
                f"The toy LM {prompt.model!r} has not learnt this prompt and has no `skill`:\n{prompt.text}"
            )
        return self.skill(prompt)


@dataclass(frozen=True)
class _ToyWeights:
    """What a toy LM knows. Training always gives a new id, which depends on nothing but what was trained on what."""

    base: str
    parent: str
    """Id of the weights that training started from; the base's own id for the base."""
    memory: Mapping[tuple[str, str], str]
    folder: Path | None = None

    @cached_property
    def id(self) -> str:
        """`base+hash`; just `base` if nothing was learnt."""
        return f"{self.base}+{digest(self._plain())[:16]}" if self.memory else self.base

    def write(self, folder: Path) -> _ToyWeights:
        """Write the weights into a folder, whole or not at all, and return them with their place."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _weights_file(self.id)
        unfinished = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        unfinished.write_text(json.dumps(self._plain()), encoding="utf-8")
        unfinished.replace(path)
        return replace(self, folder=folder)

    @classmethod
    def read(cls, path: Path) -> _ToyWeights:
        """The weights that `write` wrote."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        memory = {(system, user): completion for system, user, completion in plain["memory"]}
        return cls(plain["base"], plain["parent"], memory, path.parent)

    def _plain(self) -> dict[str, Any]:
        memory = sorted([*prompt, reply] for prompt, reply in self.memory.items())
        return {"base": self.base, "parent": self.parent, "memory": memory}


_TRAINED: dict[str, _ToyWeights] = {}
"""All weights that this process made or read, by id; setting a key is atomic, so that no lock is needed."""


def _weights_file(model: str) -> str:
    return f"toy-{model.rpartition('+')[2]}.json"


def _weights(model: str, registry: str | Path | None) -> _ToyWeights:
    """Find weights by id: in this process, else below the registry."""
    if "+" not in model:
        return _ToyWeights(base=model, parent=model, memory={})
    if model not in _TRAINED:
        place = registry or os.environ.get("SIRIUS_TOY_REGISTRY")
        _read_weights(model, Path(place) if place else None)
    return _TRAINED[model]


def _read_weights(model: str, folder: Path | None) -> None:
    path = next(folder.rglob(_weights_file(model)), None) if folder else None
    if path is None:
        raise ModelNotFoundError(
            f"The weights {model!r} of a toy LM are not in this process, nor below {folder and str(folder)!r}. Give "
            "`registry=` the folder that training had as `output_dir`, or one above it."
        )
    weights = _ToyWeights.read(path)
    if weights.id != model:
        raise ModelNotFoundError(f"{str(path)!r} holds {weights.id!r}, expected {model!r}. Train the LM again.")
    _TRAINED[model] = weights


class _ToyJob(TrainingJob):
    """A job that can really be stopped; DSPy's own `cancel` leaves the thread running into an error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state = TrainingStatus.not_started
        self.stop = threading.Event()

    def status(self) -> TrainingStatus:
        """Where the job is."""
        return self.state

    def cancel(self) -> bool:
        """Ask the job to stop at its next step; its result is then a `TrainingError`."""
        self.stop.set()
        return not self.done()


class _ToyTraining(Provider):
    def __init__(self, registry: str | Path | None, fail_training: bool, writes_weights: bool) -> None:
        super().__init__()
        self.finetunable = True
        self.TrainingJob = _ToyJob
        self._registry = registry  # private, as a library's private attributes are no settings of a compile
        self._fail_training = fail_training
        self.writes_weights = writes_weights

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def restore(self, model: str, workdir: Path) -> None:
        """Read the weights of a job that another process had finished."""
        if model not in _TRAINED:
            _read_weights(model, workdir)

    def finetune(  # type: ignore[override]  # static in the base class, but called on the instance
        self,
        job: _ToyJob,
        model: str,
        train_data: list[dict[str, Any]],
        train_data_format: Any,
        train_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Called by DSPy in the job's thread; returns the id of the new weights."""
        job.state = TrainingStatus.running
        try:
            weights = self._train(job, model, train_data, train_kwargs or {})
        except BaseException:
            job.state = TrainingStatus.cancelled if job.stop.is_set() else TrainingStatus.failed
            raise
        job.state = TrainingStatus.succeeded
        return weights.id

    def _train(
        self, job: _ToyJob, model: str, rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> _ToyWeights:
        if self._fail_training:
            raise TrainingError(f"The toy LM {model!r} was built with `fail_training=True`.")
        if not rows:
            raise TrainingError(f"The toy LM {model!r} was given 0 rows, expected at least one.")
        start = _weights(model, self._registry)
        memory = _memorize(start.memory, _pairs(rows, options.get("seed", 0)), job, options.get("on_progress"))
        weights = _ToyWeights(start.base, start.id, memory)
        place = options.get("output_dir") or self._registry or os.environ.get("SIRIUS_TOY_REGISTRY")
        _TRAINED[weights.id] = weights.write(Path(place)) if place else weights
        return weights


_Pair = tuple[tuple[str, str], str]


def _pairs(rows: Sequence[Mapping[str, Any]], seed: int) -> list[_Pair]:
    """(system, last user message) and completion of each row, in a seeded order."""
    pairs = []
    for row in rows:
        *prompt, completion = row["messages"]
        texts = {message["role"]: message["content"] for message in prompt}  # the last of each role
        pairs.append(((texts.get("system", ""), texts.get("user", "")), completion["content"]))
    random.Random(seed).shuffle(pairs)
    return pairs


def _memorize(
    known: Mapping[tuple[str, str], str],
    pairs: Sequence[_Pair],
    job: _ToyJob,
    on_progress: Callable[[int, int, float], None] | None,
) -> dict[tuple[str, str], str]:
    memory = dict(known)
    total = min(10, len(pairs))
    for step in range(total):
        if job.stop.is_set():
            raise TrainingError(f"Training was cancelled after step {step} of {total}.")
        memory.update(pairs[step * len(pairs) // total : (step + 1) * len(pairs) // total])
        if on_progress is not None:
            missed = sum(memory.get(prompt) != completion for prompt, completion in pairs)
            on_progress(step + 1, total, missed / len(pairs))
    return memory
