"""Fakes and contract suites for tests of programs, metrics, trainers and trackers; part of the public interface.

    ScriptedLM       an LM whose answers a test writes down; an unexpected call fails with its prompt
    ToyLM            an LM that learns by heart, through DSPy's own fine-tuning interface
    ScriptedTrainer  hands out LMs instead of training
    TrainerContract, TrackerContract
                     tests to inherit: subclass in a test file, define the fixtures that the class names

All of it works in threads and under asyncio, and nothing needs pytest before a contract suite runs. An LM's copies,
which DSPy makes at many places, share one script, one count of calls and one memory.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import json
import math
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import dspy
from dspy.clients.provider import Provider, TrainingJob
from dspy.clients.utils_finetune import TrainingStatus
from dspy.lm15 import Message, Request, Response, TextPart
from dspy.lm15 import Usage as LMUsage

from sirius_dspy import track
from sirius_dspy.errors import ModelNotFoundError, SiriuSError, TrainingError, UnpreparedProgramError
from sirius_dspy.train import Trainer, TrainingRequest
from sirius_dspy.trajectory import Attempt, Failure, Repair, Step, Trajectory, digest

__all__ = [
    "Prompt",
    "ScriptedLM",
    "ScriptedTrainer",
    "ToyLM",
    "TrackerContract",
    "TrainerContract",
    "UnexpectedCallError",
    "chat_reply",
    "compile_events",
]


class UnexpectedCallError(SiriuSError, AssertionError):
    """A scripted LM was asked something that its script has no answer for."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an LM was asked, in plain text."""

    model: str
    """Id of the LM; tells copies with different weights apart."""
    system: str
    messages: tuple[tuple[str, str], ...]
    """(role, text) in order, without the system message."""
    temperature: float | None = None
    seed: int | None = None
    """Of the sampling; `None` if the call did not set one, or is greedy (temperature 0)."""

    @property
    def user(self) -> str:
        """The last user message: the question itself, after all demonstrations."""
        return next((text for role, text in reversed(self.messages) if role == "user"), "")

    @property
    def text(self) -> str:
        """Everything, one message after the other."""
        return "\n\n".join(filter(None, [self.system, *(text for _, text in self.messages)]))

    def field(self, name: str) -> str | None:
        """Value of an input field in the last user message, as text; `None` if the prompt does not have it.

        Reads `[[ ## name ## ]]` blocks as ChatAdapter writes them, and `name: value` lines; there, a line in the value
        that looks like `word: ` ends it.
        """
        chat = rf"\[\[ ## {re.escape(name)} ## \]\]\n(.*?)(?=\n\n\[\[ ## |\n\nRespond with |\Z)"
        plain = rf"^{re.escape(name)}: (.*?)(?=\n\w+: |\nReply with |\Z)"
        found = re.search(chat, self.user, re.S) or re.search(plain, self.user, re.S | re.M)
        return found and found.group(1).strip()

    def asks_for(self, name: str) -> bool:
        """Whether the prompt names this output field; one that asks for a single plain text names none."""
        return f"`[[ ## {name} ## ]]`" in self.user or f"'{name}:'" in self.user


Answers = Callable[[Prompt], str] | Sequence[str | Exception] | Mapping[str, str]


def chat_reply(**fields: Any) -> str:
    """Write a reply as ChatAdapter parses it.

    Examples:
        >>> print(chat_reply(answer=4))
        [[ ## answer ## ]]
        4
        <BLANKLINE>
        [[ ## completed ## ]]
    """
    blocks = [f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()]
    return "\n\n".join([*blocks, "[[ ## completed ## ]]"])


def _prompt_of(request: Request) -> Prompt:
    system = request.system or ""
    config = request.config
    return Prompt(
        model=request.model,
        system=system if isinstance(system, str) else "".join(getattr(part, "text", "") for part in system),
        messages=tuple((message.role, message.text or "") for message in request.messages),
        temperature=config.temperature,
        seed=None if config.temperature == 0 else config.seed,
    )


class _Engine:
    """Answers requests with a Python function and keeps a record; shared by all copies of an LM, also by deep ones.

    Subclasses say what the answer is. The lock protects the record and whatever a subclass counts.
    """

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.requests: list[Prompt] = []
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def dump_state(self) -> dict[str, Any]:
        """Nothing: the LM saves what it needs to build a new engine."""
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        """A new engine; DSPy requires the pair of methods."""
        return cls(**state)

    def answer(self, prompt: Prompt) -> str:
        raise NotImplementedError

    def complete(self, request: Request) -> Response:
        """Called by DSPy, from many threads at once."""
        prompt = self._note(request)
        time.sleep(self.latency_s)
        return self._respond(prompt)

    async def acomplete(self, request: Request) -> Response:
        prompt = self._note(request)
        await asyncio.sleep(self.latency_s)
        return self._respond(prompt)

    def _note(self, request: Request) -> Prompt:
        prompt = _prompt_of(request)
        with self.lock:
            self.requests.append(prompt)
        return prompt

    def _respond(self, prompt: Prompt) -> Response:
        text = self.answer(prompt)
        if not isinstance(text, str):
            raise UnexpectedCallError(
                f"The script answered {text!r}, expected a text; it was asked:\n{prompt.text}\nCorrect the script."
            )
        usage = LMUsage(input_tokens=len(prompt.text.split()), output_tokens=len(text.split()))
        message = Message.assistant([TextPart(text)])
        return Response(id=None, model=prompt.model, message=message, finish_reason="stop", usage=usage)


class _AsyncEngine:
    """The same engine under asyncio: DSPy wants a second object whose `complete` is a coroutine function."""

    def __init__(self, engine: _Engine) -> None:
        self.engine = engine

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def dump_state(self) -> dict[str, Any]:
        """Nothing; see `_Engine.dump_state`."""
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        """DSPy requires the pair of methods; the LM's own state never has this engine."""
        return cls(_Engine(**state))

    async def complete(self, request: Request) -> Response:
        """Called by DSPy."""
        return await self.engine.acomplete(request)


class _EngineLM(dspy.LM):
    """A `dspy.LM` over one of our engines, whose `rollout_id` becomes the sampling seed, as in `LocalLM`."""

    def __init__(self, model: str, engine: _Engine, **kwargs: Any) -> None:
        kwargs.setdefault("cache", False)
        super().__init__(model, engine=engine, async_engine=_AsyncEngine(engine), **kwargs)

    @property
    def requests(self) -> tuple[Prompt, ...]:
        """Everything that this LM and its copies were asked, in order of arrival; answers from a cache do not count."""
        with self.engine.lock:
            return tuple(self.engine.requests)

    @property
    def calls(self) -> int:
        """Number of requests."""
        return len(self.requests)

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        return super().__call__(prompt, messages=messages, **self._seeded(prompt, kwargs))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Like a call, without blocking the event loop."""
        return await super().acall(prompt, messages=messages, **self._seeded(prompt, kwargs))

    def dump_state(self) -> dict[str, Any]:
        """State without the engines, which a loaded LM builds again."""
        return {key: value for key, value in super().dump_state().items() if key not in ("engine", "async_engine")}

    def _seeded(self, prompt: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        options = {**self.kwargs, **kwargs}
        rollout_id = options.get("rollout_id")
        if rollout_id is None or options.get("seed") is not None or isinstance(prompt, Request):
            return kwargs  # a Request carries its own configuration
        return {**kwargs, "seed": rollout_id}


class ScriptedLM(_EngineLM):
    """An LM whose answers are written down beforehand.

    Args:
        answers: One of
            a function from `Prompt` to the reply (an exception that it raises reaches DSPy as an LM's failure);
            a mapping from a text in the last user message to the reply, where the first key that occurs is taken;
            a sequence of replies, used up in the order of the calls, in which an exception is raised.
        model: Id of the LM.
        latency_s: Seconds that each answer takes.
        kwargs: Of `dspy.LM`; the cache is off unless it is asked for.

    A call that the script has no answer for raises `UnexpectedCallError`, which DSPy passes on as `LMUnexpectedError`,
    with the prompt in its message. A saved program keeps mappings, sequences of texts, and functions that can be
    imported.

    Examples:
        >>> lm = ScriptedLM({"capital of France": "Paris"})
        >>> lm("What is the capital of France?")
        ['Paris']
        >>> lm.calls
        1
    """

    def __init__(
        self, answers: Answers = (), model: str = "scripted/lm", *, latency_s: float = 0.0, **kwargs: Any
    ) -> None:
        if isinstance(answers, str) or not (callable(answers) or isinstance(answers, Mapping | Sequence)):
            raise TypeError(f"`answers` is {answers!r}, expected a function, a mapping or a list, such as `[text]`.")
        super().__init__(model, _Script(answers, latency_s), **kwargs)

    def dump_state(self) -> dict[str, Any]:
        """State with the script, as far as JSON can hold it."""
        script = self.engine
        return {**super().dump_state(), "answers": _plain_script(script.answers), "latency_s": script.latency_s}

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> ScriptedLM:
        """The LM that `dump_state` described, at the start of its script."""
        state = {**state, "answers": _revived_script(state.get("answers"))}
        return super().load_state(state, allow_custom_lm_class=allow_custom_lm_class)


class _Script(_Engine):
    def __init__(self, answers: Answers = (), latency_s: float = 0.0) -> None:
        super().__init__(latency_s)
        self.answers = answers
        self._unused = iter(answers) if isinstance(answers, Sequence) else iter(())

    def answer(self, prompt: Prompt) -> str:
        if callable(self.answers):
            return self.answers(prompt)
        found = self._matching(prompt) if isinstance(self.answers, Mapping) else self._next()
        if found is None:
            raise UnexpectedCallError(
                f"Call {len(self.requests)} of the scripted LM {prompt.model!r} has no answer in its script of "
                f"{len(self.answers)}. Add one, or find out why the call was made:\n{prompt.text}"
            )
        if isinstance(found, Exception):
            raise found
        return found

    def _matching(self, prompt: Prompt) -> str | None:
        answers: Mapping[str, str] = self.answers  # type: ignore[assignment]  # narrowed by the caller
        return next((reply for text, reply in answers.items() if text in prompt.user), None)

    def _next(self) -> str | Exception | None:
        with self.lock:
            return next(self._unused, None)


def _plain_script(answers: Answers) -> Any:
    if callable(answers):
        return {"function": _path_of(answers)}
    if isinstance(answers, Mapping):
        return {"mapping": dict(answers)}
    return {"sequence": [answer for answer in answers if isinstance(answer, str)]}


def _revived_script(plain: Mapping[str, Any] | None) -> Answers:
    kind, value = next(iter((plain or {"sequence": ()}).items()))
    return _function_at(value) or () if kind == "function" else value


def _path_of(function: Callable[..., Any] | None) -> str | None:
    """`module:name` of a function that can be imported, `None` of any other."""
    path = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    try:
        return path if _function_at(path) is function else None
    except (ImportError, AttributeError, ValueError):
        return None


def _function_at(path: str | None) -> Callable[..., Any] | None:
    if path is None:
        return None
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


class ToyLM(_EngineLM):
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
        return _weights(self.model, self._training.registry).memory

    @property
    def folder(self) -> Path | None:
        """Where the weights are on disk; `None` for a base, or weights only in this process."""
        return _weights(self.model, self._training.registry).folder

    def copy(self, **kwargs: Any) -> ToyLM:
        """See `dspy.LM.copy`; the weights of another `model` must exist."""
        if "model" in kwargs:
            _weights(kwargs["model"], self._training.registry)
        return super().copy(**kwargs)

    def dump_state(self) -> dict[str, Any]:
        """State with the path of `skill`, if it can be imported; the weights stay where they are."""
        provider = self._training
        own = {
            "skill": _path_of(self.engine.skill),
            "registry": provider.registry and str(provider.registry),
            "fail_training": provider.fail_training,
            "writes_weights": provider.writes_weights,
            "latency_s": self.engine.latency_s,
        }
        return {**super().dump_state(), **own}

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> ToyLM:
        """The LM that `dump_state` described."""
        state = {**state, "skill": _function_at(state.get("skill"))}
        return super().load_state(state, allow_custom_lm_class=allow_custom_lm_class)


class _ToyEngine(_Engine):
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
        self.registry = registry
        self.fail_training = fail_training
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
        if self.fail_training:
            raise TrainingError(f"The toy LM {model!r} was built with `fail_training=True`.")
        if not rows:
            raise TrainingError(f"The toy LM {model!r} was given 0 rows, expected at least one.")
        start = _weights(model, self.registry)
        memory = _memorised(start.memory, _pairs(rows, options.get("seed", 0)), job, options.get("on_progress"))
        weights = _ToyWeights(start.base, start.id, memory)
        place = options.get("output_dir") or self.registry or os.environ.get("SIRIUS_TOY_REGISTRY")
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


def _memorised(
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


class ScriptedTrainer:
    """A trainer that hands out LMs instead of training.

    Args:
        lms: The "trained" LM of each agent, or a function from the `TrainingRequest` to it.

    Attributes:
        requests: What it was asked to train, in order.
        checked: The agents that it was asked about before.
    """

    def __init__(self, lms: Mapping[str, dspy.LM] | Callable[[TrainingRequest], dspy.LM]) -> None:
        self.lms = lms
        self.requests: list[TrainingRequest] = []
        self.checked: list[str] = []

    def check(self, agent: str, lm: dspy.LM) -> None:
        """Refuse an agent that the mapping does not have."""
        self.checked.append(agent)
        self._refuse_unknown(agent)

    def train(self, request: TrainingRequest) -> dspy.LM:
        """Record the request and return the agent's LM."""
        self._refuse_unknown(request.agent)
        if not request.rows:
            raise TrainingError(f"Agent {request.agent!r} has no training rows.", agent=request.agent)
        self.requests.append(request)
        return self.lms[request.agent] if isinstance(self.lms, Mapping) else self.lms(request)

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """The LM of that id from the mapping, else a copy of `lm` with that id."""
        known = self.lms.values() if isinstance(self.lms, Mapping) else ()
        return next((candidate for candidate in known if candidate.model == model), None) or lm.copy(model=model)

    def _refuse_unknown(self, agent: str) -> None:
        if isinstance(self.lms, Mapping) and agent not in self.lms:
            raise UnpreparedProgramError(
                f"The scripted trainer has no LM for agent {agent!r}, only for {sorted(self.lms)}. Add one to `lms`."
            )


_ROWS = (
    {
        "messages": [
            {"role": "system", "content": "Answer with one word."},
            {"role": "user", "content": "question: What colour is grass?"},
            {"role": "assistant", "content": "green"},
        ]
    },
    {
        "messages": [
            {"role": "system", "content": "Answer with one word."},
            {"role": "user", "content": "question: What colour is snow?"},
            {"role": "assistant", "content": "white"},
        ]
    },
)


class TrainerContract:
    """What every `Trainer` must do. Subclass it with three fixtures.

    - `trainer`: a new trainer,
    - `lm`: an LM that it can train, for the agent `solver`,
    - `refused`: a pair of agent and LM that it must refuse.

    Examples:
        ```python
        class TestMyTrainer(TrainerContract):
            @pytest.fixture
            def trainer(self):
                return MyTrainer()
        ```
    """

    def test_check_accepts_an_lm_that_can_be_trained(self, trainer: Trainer, lm: dspy.LM) -> None:
        """A check neither trains nor complains."""
        model = lm.model
        trainer.check("solver", lm)
        assert lm.model == model

    def test_check_refuses_with_the_name_of_the_agent(self, trainer: Trainer, refused: tuple[str, dspy.LM]) -> None:
        """Refusal comes before anything is paid for, and says which agent it is about."""
        import pytest

        with pytest.raises(UnpreparedProgramError, match=re.escape(refused[0])):
            trainer.check(*refused)

    def test_training_gives_another_lm(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """New weights have a new id, and the LM that training started from keeps its own."""
        model = lm.model
        trained = trainer.train(_request(lm, tmp_path))
        assert isinstance(trained, dspy.LM)
        assert trained is not lm
        assert trained.model != model == lm.model

    def test_the_trained_lm_answers(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """It is ready when `train` returns."""
        trained = trainer.train(_request(lm, tmp_path))
        trained.launch()
        reply = trained(Request(model=trained.model, messages=(Message.user("question: What colour is grass?"),)))
        assert isinstance(reply.text, str)

    def test_rows_stay_as_they_are(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """The training set is on record; a trainer must not rewrite it."""
        rows = copy.deepcopy(_ROWS)
        trainer.train(_request(lm, tmp_path, rows))
        assert rows == _ROWS

    def test_progress_counts_up_to_its_total(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """Reports are optional; those that come are in order and have a finite loss."""
        reports: list[tuple[int, int, float]] = []
        trainer.train(_request(lm, tmp_path, on_progress=lambda *report: reports.append(report)))
        assert [step for step, _, _ in reports] == sorted(step for step, _, _ in reports)
        assert all(0 <= step <= total and math.isfinite(loss) for step, total, loss in reports)

    def test_no_rows_is_an_error(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """An LM that learnt nothing must not pass for a trained one."""
        import pytest

        with pytest.raises(TrainingError):
            trainer.train(_request(lm, tmp_path, rows=()))

    def test_restore_gives_the_trained_lm_back(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """A second run of the same compile takes up the finished job."""
        trained = trainer.train(_request(lm, tmp_path))
        assert trainer.restore(lm, trained.model, tmp_path).model == trained.model


def _request(
    lm: dspy.LM,
    workdir: Path,
    rows: Sequence[Mapping[str, Any]] = _ROWS,
    on_progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> TrainingRequest:
    return TrainingRequest(agent="solver", lm=lm, rows=rows, workdir=workdir, seed=0, on_progress=on_progress)


class TrackerContract:
    """What every `Tracker` must bear. Subclass it with a fixture `tracker` that gives a new tracker.

    A tracker that raises is left out for the rest of a compile, so each of these tests fails where it would go silent.
    """

    def test_follows_a_whole_compile(self, tracker: track.Tracker, tmp_path: Path) -> None:
        """Every hook gets its events, with names as DSPy makes them."""
        _tell(tracker, compile_events(tmp_path))

    def test_leaves_the_events_alone(self, tracker: track.Tracker, tmp_path: Path) -> None:
        """Other trackers get the same objects."""
        events = list(compile_events(tmp_path))
        before = copy.deepcopy(events)
        _tell(tracker, events)
        assert events == before

    def test_a_failed_compile_leaves_nothing_behind(self, tracker: track.Tracker, tmp_path: Path) -> None:
        """The same tracker follows the next compile, although the last one stopped in the middle of an iteration."""
        for status in ("failed", "interrupted"):
            events = list(compile_events(tmp_path / status, run=status, status=status))
            started, ended = events[0], events[-1]
            _tell(tracker, [started, ended])
            _tell(tracker, [*events[: len(events) // 2], ended])
        _tell(tracker, compile_events(tmp_path / "next", run="next"))

    def test_a_compile_can_be_resumed(self, tracker: track.Tracker, tmp_path: Path) -> None:
        """The same run id comes again after a restart."""
        _tell(tracker, compile_events(tmp_path, status="interrupted"))
        _tell(tracker, compile_events(tmp_path, resumed=True))

    def test_progress_comes_from_another_thread(self, tracker: track.Tracker, tmp_path: Path) -> None:
        """`on_training_progress` is the one hook that the compile's own thread does not call."""
        events = list(compile_events(tmp_path))
        _tell(tracker, events[:1])
        report = track.TrainingProgress(iteration=1, agent="solver.predict", step=1, total=1, loss=0.1)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(tracker.on_training_progress, report).result()
        _tell(tracker, events[-1:])


Event = tuple[str, Any]
"""Name of the hook, and the event it gets."""


def compile_events(
    run_dir: Path, *, run: str = "run-1", status: str = "finished", resumed: bool = False
) -> Iterator[Event]:
    """The events of a compile of one iteration with two agents, in order; files that they name exist.

    Args:
        run_dir: Folder of the compile; made, with what a compile puts there.
        run: Its id.
        status: How it ends: `finished`, `failed` or `interrupted`.
        resumed: Whether it goes on from an earlier one.
    """
    agents = {"analyst": ("analyst",), "solver.predict": ("solver.predict", "helpers[0]")}
    lms = dict.fromkeys(agents, "toy/base")
    yield "on_compile_started", _started(run_dir, run, resumed, agents, lms)
    yield from _evaluation(0, 0.0)
    yield from _collection(run)
    for agent in agents:
        yield from _training(run_dir, agent)
        lms[agent] = f"toy/{agent}+1"
    yield from _evaluation(1, 0.5)
    metrics = {"val/score": 0.5, "collect/success_rate": 0.5, "repair/repaired": 1.0}
    yield "on_iteration_ended", track.IterationEnded(iteration=1, metrics=metrics, lms=lms)
    yield "on_compile_ended", _ended(status, metrics)


def _started(
    run_dir: Path, run: str, resumed: bool, agents: Mapping[str, Sequence[str]], lms: Mapping[str, str]
) -> track.CompileStarted:
    run_dir.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(run_dir / "library.db")) as library:
        library.execute("CREATE TABLE IF NOT EXISTS trajectories (id TEXT)")
    return track.CompileStarted(
        run=run,
        run_dir=run_dir,
        library_url=f"sqlite:///{run_dir / 'library.db'}",
        params={"iterations": 1, "threshold": 1.0, "mixed": False, "run_dir": None},
        agents=agents,
        lms=dict(lms),
        adapter="ChatAdapter",
        num_train=2,
        num_val=1,
        trainset=[{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}],
        valset=[{"question": "3+3?", "answer": "6"}],
        resumed=resumed,
    )


def _ended(status: str, metrics: Mapping[str, float]) -> track.CompileEnded:
    if status != "finished":
        return track.CompileEnded(status=status, error="TrainingError: the job gave up")
    return track.CompileEnded(status=status, best_iteration=1, metrics=metrics, results={"scores": [0.0, 0.5]})


def _evaluation(iteration: int, score: float) -> Iterator[Event]:
    yield "on_stage_started", track.StageStarted(iteration=iteration, stage="evaluate", total=1)
    event = track.Evaluated(iteration=iteration, score=score, num_examples=1, label="program")
    yield "on_evaluated", event


def _collection(run: str) -> Iterator[Event]:
    good, bad, crashed = _trajectory(run, "2", 1.0), _trajectory(run, "5", 0.0), _crashed(run)
    yield "on_stage_started", track.StageStarted(iteration=1, stage="collect", total=3)
    for trajectory in (good, bad, crashed):
        event = track.RolledOut(iteration=1, trajectory=trajectory, succeeded=trajectory.reward >= 1.0)
        yield "on_rolled_out", event
    yield "on_stage_started", track.StageStarted(iteration=1, stage="repair", total=2)
    fixed = _trajectory(run, "4", 1.0, origin="repair", parent=bad.id, edited=1)
    tried = Attempt(1, "solver.predict", "repaired", "Add again.", {"answer": "4"}, {"answer": "4"}, 1.0, fixed.id)
    leaked = Attempt(0, "analyst", "leaked", detail="the gold answer")
    yield "on_repaired", track.Repaired(1, Repair(bad.id, (leaked, tried), run, 1, 0.5), [fixed])
    yield "on_repaired", track.Repaired(1, Repair(crashed.id, (), run, 1, 0.0), [])


def _training(run_dir: Path, agent: str) -> Iterator[Event]:
    rows = run_dir / f"{agent}.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in _ROWS), encoding="utf-8")
    yield "on_stage_started", track.StageStarted(iteration=1, stage="train", total=2)
    yield "on_curated", track.Curated(1, agent, len(_ROWS), {"duplicate": 3, "unparsed": 0}, rows)
    for step in (1, 2):
        yield "on_training_progress", track.TrainingProgress(1, agent, step, 2, 1 / step)
    weights = run_dir / "weights" if agent == "analyst" else None
    if weights is not None:
        weights.mkdir(exist_ok=True)
        (weights / "adapter.json").write_text("{}", encoding="utf-8")
    yield (
        "on_trained",
        track.Trained(1, agent, "toy/base", f"toy/{agent}+1", len(_ROWS), (1.0, 0.5), 0.1, weights),
    )


def _trajectory(run: str, answer: str, reward: float, **lineage: Any) -> Trajectory:
    steps = (
        Step("analyst", 0, {"question": "2+2?"}, {"facts": "two twos"}, "toy/base", started=1, ended=2),
        Step("solver.predict", 0, {"facts": "two twos"}, {"answer": answer}, "toy/base", started=3, ended=4),
    )
    prediction = {"answer": answer}
    return Trajectory(digest(answer), steps, prediction, reward, program="p", run=run, iteration=1, **lineage)


def _crashed(run: str) -> Trajectory:
    failure = Failure("AdapterParseError", "no answer field", "well, well")
    steps = (Step("analyst", 0, {"question": "0?"}, None, "toy/base", failure, started=1, ended=2),)
    return Trajectory(digest("0"), steps, None, 0.0, failure=failure, program="p", run=run, iteration=1)


def _tell(tracker: track.Tracker, events: Iterator[Event] | Sequence[Event]) -> None:
    for hook, event in events:
        getattr(tracker, hook)(event)
