"""An LM that memorizes its training rows, through DSPy's fine-tuning interface."""

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
    """An LM that memorizes its training rows, and answers all other prompts with `skill`.

    Fine-tuning uses DSPy's interface (`lm.finetune`, a provider, a job in a thread), so a whole compile can be tested
    with it. The memory depends on the system message and the last user message; demonstrations between them are
    ignored. New weights have a new id, `<base>+<hash>`, which depends only on the rows and on the weights they were
    trained on.

    Training accepts `output_dir` (weights are written there, for other processes), `on_progress(step, total, loss)`,
    where the loss is the share of rows not yet memorized, and `seed`, which chooses among rows that answer the same
    prompt differently. Other options are ignored.

    Args:
        model: Id of the base, or of trained weights.
        skill: Answers prompts that were not memorized; without it, they raise an `UnexpectedCallError`. `Prompt.seed`
            differs between samples, so it can be right now and then.
        registry: Folder that is searched for weights of other processes, and into which weights are written that are
            trained without `output_dir`. `None` takes the environment variable SIRIUS_TOY_REGISTRY, if it is set.
        fail_training: Whether every job fails.
        writes_weights: Whether the provider declares to `ProviderTrainer` that it accepts `output_dir`.
        latency_s: Duration of each answer in seconds.
        kwargs: Arguments of `dspy.LM`; the cache is off by default.

    Raises:
        ModelNotFoundError: `model` names trained weights that cannot be found.
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
        """Map (system message, last user message) to the memorized completion."""
        return _weights(self.model, self._training._registry).memory

    @property
    def folder(self) -> Path | None:
        """Folder of the weights; `None` for a base, or for weights that exist only in this process."""
        return _weights(self.model, self._training._registry).folder

    def __getstate__(self) -> dict[str, Any]:
        """The LM with its weights, for another process."""
        return {**super().__getstate__(), "_weights": _weights(self.model, self._training._registry)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        weights = state.pop("_weights")
        if weights.memory:
            _TRAINED.setdefault(weights.id, weights)
        super().__setstate__(state)

    def copy(self, **kwargs: Any) -> ToyLM:
        """Copy the LM; see `dspy.LM.copy`. The weights of another `model` must exist."""
        if "model" in kwargs:
            _weights(kwargs["model"], self._training._registry)
        return super().copy(**kwargs)

    def dump_state(self) -> dict[str, Any]:
        """Return the state with the path of `skill`, if it can be imported, and without the weights."""
        provider = self._training
        extra = {
            "skill": path_of(self.engine.skill),
            "registry": provider._registry and str(provider._registry),
            "fail_training": provider._fail_training,
            "writes_weights": provider.writes_weights,
            "latency_s": self.engine.latency_s,
        }
        return {**super().dump_state(), **extra}

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> ToyLM:
        """Restore an LM from the result of `dump_state`."""
        state = {**state, "skill": function_at(state.get("skill"))}
        return super().load_state(state, allow_custom_lm_class=allow_custom_lm_class)

    @classmethod
    def from_folder(cls, folder: Path, state: dict[str, Any]) -> ToyLM:
        """Load the LM from a checkpoint's weights."""
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
                f"The toy LM {prompt.model!r} has not memorized this prompt and has no `skill`:\n{prompt.text}"
            )
        return self.skill(prompt)


@dataclass(frozen=True)
class _ToyWeights:
    """The weights of a toy LM. Their id depends only on the rows and on the weights they were trained on."""

    base: str
    parent: str
    """Id of the weights that training started from; for a base, its own id."""
    memory: Mapping[tuple[str, str], str]
    folder: Path | None = None

    @cached_property
    def id(self) -> str:
        """`base+hash`, or `base` if nothing was memorized."""
        return f"{self.base}+{digest(self._plain())[:16]}" if self.memory else self.base

    def write(self, folder: Path) -> _ToyWeights:
        """Write the weights into a folder atomically, and return them with their place."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _weights_file(self.id)
        unfinished = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        unfinished.write_text(json.dumps(self._plain()), encoding="utf-8")
        unfinished.replace(path)
        return replace(self, folder=folder)

    @classmethod
    def read(cls, path: Path) -> _ToyWeights:
        """Read weights that `write` wrote."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        memory = {(system, user): completion for system, user, completion in plain["memory"]}
        return cls(plain["base"], plain["parent"], memory, path.parent)

    def _plain(self) -> dict[str, Any]:
        memory = sorted([*prompt, reply] for prompt, reply in self.memory.items())
        return {"base": self.base, "parent": self.parent, "memory": memory}


_TRAINED: dict[str, _ToyWeights] = {}
"""All weights that this process has made or read, by id. Setting a key is atomic, so no lock is needed."""


def _weights_file(model: str) -> str:
    return f"toy-{model.rpartition('+')[2]}.json"


def _weights(model: str, registry: str | Path | None) -> _ToyWeights:
    """Find weights by id in this process, or below the registry."""
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
            f"The weights {model!r} of a toy LM are not in this process, nor below {folder and str(folder)!r}. Pass "
            "the `output_dir` of the training, or a folder above it, as `registry=`."
        )
    weights = _ToyWeights.read(path)
    if weights.id != model:
        raise ModelNotFoundError(f"{str(path)!r} holds {weights.id!r}, expected {model!r}. Train the LM again.")
    _TRAINED[model] = weights


class _ToyJob(TrainingJob):
    """A job that can be stopped, which DSPy's `cancel` does not do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state = TrainingStatus.not_started
        self.stop = threading.Event()

    def status(self) -> TrainingStatus:
        """Return the status of the job."""
        return self.state

    def cancel(self) -> bool:
        """Stop the job at its next step; its result is then a `TrainingError`."""
        self.stop.set()
        return not self.done()


class _ToyTraining(Provider):
    def __init__(self, registry: str | Path | None, fail_training: bool, writes_weights: bool) -> None:
        super().__init__()
        self.finetunable = True
        self.TrainingJob = _ToyJob
        self._registry = registry  # private, because private attributes of a library are not settings of a compile
        self._fail_training = fail_training
        self.writes_weights = writes_weights

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def restore(self, model: str, workdir: Path) -> None:
        """Read the weights of a job that another process has finished."""
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
        """Train and return the id of the new weights; DSPy calls this in the job's thread."""
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
    """Return (system message, last user message) and completion of each row, in a seeded order."""
    pairs = []
    for row in rows:
        *prompt, completion = row["messages"]
        texts = {message["role"]: message["content"] for message in prompt}  # the last of each role
        pairs.append(((texts.get("system", ""), texts.get("user", "")), completion["content"]))
    random.Random(seed).shuffle(pairs)
    return pairs


def _memorize(
    learned: Mapping[tuple[str, str], str],
    pairs: Sequence[_Pair],
    job: _ToyJob,
    on_progress: Callable[[int, int, float], None] | None,
) -> dict[tuple[str, str], str]:
    memory = dict(learned)
    total = min(10, len(pairs))
    for step in range(total):
        if job.stop.is_set():
            raise TrainingError(f"Training was cancelled after step {step} of {total}.")
        memory.update(pairs[step * len(pairs) // total : (step + 1) * len(pairs) // total])
        if on_progress is not None:
            missed = sum(memory.get(prompt) != completion for prompt, completion in pairs)
            on_progress(step + 1, total, missed / len(pairs))
    return memory
