"""`LocalLM`: local weights as a `dspy.LM` that answers on this machine and can be fine-tuned on it."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import dspy
from dspy import lm15

from sirius_dspy import checks
from sirius_dspy.errors import PromptTooLongError
from sirius_dspy.local.engine import Generation, GenerationOptions
from sirius_dspy.local.lora import LoraOptions
from sirius_dspy.local.models import find, resolve
from sirius_dspy.local.provider import LocalProvider
from sirius_dspy.local.serving import Device, engines, pool_key

_draws: contextvars.ContextVar[Iterator[int]] = contextvars.ContextVar("sirius_dspy_draws")
"""Numbers the candidates of one call with `n > 1`, which DSPy asks for one by one with the same seed."""

_REFUSED = ("response_format", "logprobs", "tool_choice", "reasoning", "frequency_penalty", "presence_penalty")


_SETTINGS = {
    "model": checks.PATH,
    "temperature": checks.optional(checks.number(0)),
    "max_tokens": checks.optional(checks.whole(1)),
    "cache": checks.FLAG,
    "lora": checks.optional(checks.instance(LoraOptions)),
    "device": checks.choice(*get_args(Device), None),
}
"""Of what kind each setting of a `LocalLM` is."""


class LocalEngine:
    """What DSPy calls: a handle that finds the weights by the request's model id, and holds none itself.

    Args:
        device: See `LocalLM`.
    """

    def __init__(self, device: Device | None = None) -> None:
        self.device = device

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalEngine:
        return self

    def dump_state(self) -> dict[str, Any]:
        """What `load_state` needs."""
        return {"device": self.device}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> LocalEngine:
        """The handle that `dump_state` described."""
        return cls(**state)

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request; called from many threads."""
        options = _options(request)
        messages = _messages(request)
        with engines().lend(pool_key(request.model, self.device)) as engine:
            try:
                generation = engine.generate(engine.chat.prompt(messages), options)
            except PromptTooLongError as error:
                raise lm15.ContextLengthError(str(error)) from error
        return _response(request.model, generation)


class AsyncLocalEngine(LocalEngine):
    """The same for `acall`."""

    async def complete(self, request: lm15.Request) -> lm15.Response:  # type: ignore[override]  # DSPy's async contract
        """Answer one request without blocking the event loop."""
        call = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(_async_threads(), call, super().complete, request)


class LocalLM(dspy.LM):
    """A language model from a GGUF file, answering and learning on this machine.

    `.model` is `local/<name>@<hash of the file>`: equal ids are equal weights, everywhere. LM objects hold no weights;
    those are loaded at the first call and shared by all LMs with the same id. `finetune` gives a new LM with a new id
    and leaves this one as it is.

    A call's `rollout_id` becomes the sampling seed where no seed is given, so that samples differ and can be repeated.

    Args:
        model: A packaged name, a path (a string ending in `.gguf`, or a `Path` to a file or its folder), a Hugging Face
            id, or an id of this machine's index; see `sirius_dspy.local.models.find`.
        temperature: 0 or `None` always takes the likeliest token.
        max_tokens: Tokens to write at most.
        cache: DSPy's response cache; off, because a local answer costs less than the disk it would fill.
        lora: Defaults of `finetune`; its `train_kwargs` win.
        device: `None` takes CUDA, else OpenVINO, else PyTorch on the CPU, whichever is there.
        **kwargs: Passed on to `dspy.LM`.

    Raises:
        ModelNotFoundError: The weights are not there; the message says how to get them.
        SettingsError: A setting is of the wrong kind or out of its range.

    Examples:
        ```python
        lm = LocalLM("smollm2-135m-instruct")
        job = lm.finetune(rows, "chat", {"epochs": 3, "output_dir": "weights/solver"})
        better = job.result()
        ```
    """

    def __init__(
        self,
        model: str | Path = "smollm2-135m-instruct",
        *,
        temperature: float | None = None,
        max_tokens: int | None = 256,
        cache: bool = False,
        lora: LoraOptions | None = None,
        device: Device | None = None,
        **kwargs: Any,
    ) -> None:
        numbers = {"temperature": temperature, "max_tokens": max_tokens}
        checks.check("LocalLM", {"model": model, "cache": cache, "lora": lora, "device": device, **numbers}, _SETTINGS)
        self.lora = lora or LoraOptions()
        self.device = device
        kwargs.setdefault("engine", LocalEngine(device))
        kwargs.setdefault("async_engine", AsyncLocalEngine(device))
        kwargs.setdefault("provider", LocalProvider(self.lora, device))
        super().__init__(find(model).id, temperature=temperature, max_tokens=max_tokens, cache=cache, **kwargs)

    @property
    def gguf(self) -> Path:
        """The weights' file on this machine."""
        return resolve(self.model).gguf

    @property
    def folder(self) -> Path:
        """Where the weights lie; for fine-tuned ones with `adapter/` and `training.json`."""
        return resolve(self.model).folder

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Answer; see `dspy.LM`."""
        prompt, kwargs = self._add_seed(prompt, kwargs)
        token = _draws.set(itertools.count())
        try:
            return super().__call__(prompt, messages=messages, **kwargs)
        finally:
            _draws.reset(token)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Answer without blocking the event loop; see `dspy.LM`."""
        prompt, kwargs = self._add_seed(prompt, kwargs)
        token = _draws.set(itertools.count())
        try:
            return await super().acall(prompt, messages=messages, **kwargs)
        finally:
            _draws.reset(token)

    def _add_seed(self, prompt: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The call with its rollout id as seed, unless it has a seed: DSPy keeps rollout ids from the engine."""
        settings = {**self.kwargs, **kwargs}
        rollout_id = settings.get("rollout_id")
        if rollout_id is None or settings.get("seed") is not None:
            return prompt, kwargs
        seed = int.from_bytes(hashlib.sha256(repr(rollout_id).encode()).digest()[:4], "big") >> 1
        if not isinstance(prompt, lm15.Request):
            return prompt, {**kwargs, "seed": seed}
        if prompt.config.seed is not None:
            return prompt, kwargs
        return dataclasses.replace(prompt, config=dataclasses.replace(prompt.config, seed=seed)), kwargs

    def dump_state(self) -> dict[str, Any]:
        """Plain values that rebuild this LM; the handles are rebuilt by the constructor."""
        state = {key: value for key, value in super().dump_state().items() if key not in ("engine", "async_engine")}
        return {**state, "device": self.device, "lora": dataclasses.asdict(self.lora)}

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> LocalLM:
        """The LM that `dump_state` described; its weights must be in this machine's index."""
        values = dict(state)
        values["lora"] = LoraOptions(**values.get("lora") or {})
        loaded: LocalLM = super().load_state(values, allow_custom_lm_class=allow_custom_lm_class)
        return loaded

    @classmethod
    def from_folder(cls, folder: Path, state: dict[str, Any]) -> LocalLM:
        """The LM whose weights a checkpoint holds; they join this machine's index."""
        return cls.load_state({**state, "model": str(folder / "model.gguf")})


@lru_cache(maxsize=1)
def _async_threads() -> ThreadPoolExecutor:
    """As many threads as a batch has places; `asyncio`'s own default would be a handful."""
    return ThreadPoolExecutor(64, thread_name_prefix="local-lm")


def _options(request: lm15.Request) -> GenerationOptions:
    config = request.config
    refused = [name for name in _REFUSED if getattr(config, name, None)]
    if refused or request.tools:
        feature = f"config.{refused[0]}" if refused else "tools"
        raise lm15.UnsupportedFeatureError(f"A local model cannot do {feature!r}. Leave it out.", feature=feature)
    given = {name: getattr(config, name) for name in ("max_tokens", "temperature", "top_p", "top_k", "seed")}
    try:
        options = GenerationOptions(
            stop=tuple(config.stop or ()), **{name: value for name, value in given.items() if value is not None}
        )
    except ValueError as error:
        raise lm15.InvalidRequestError(str(error)) from error
    return _with_draw(options)


def _with_draw(options: GenerationOptions) -> GenerationOptions:
    """Another seed for every further candidate of one call."""
    draw = next(_draws.get(iter((0,))), 0)
    if draw == 0 or options.seed is None:
        return options
    return dataclasses.replace(options, seed=options.seed + draw * 1_000_003)


def _messages(request: lm15.Request) -> list[dict[str, str]]:
    messages = [{"role": message.role, "content": _text(message.text)} for message in request.messages]
    if request.system is None:
        return messages
    parts = [lm15.TextPart(request.system)] if isinstance(request.system, str) else request.system
    system = "\n".join(_text(getattr(part, "text", None)) for part in parts)
    return [{"role": "system", "content": system}, *messages]


def _text(text: str | None) -> str:
    if text is None:
        raise lm15.UnsupportedFeatureError("A local model reads text only. Leave images and other parts out.")
    return text


def _response(model_id: str, generation: Generation) -> lm15.Response:
    return lm15.Response(
        id=None,
        model=model_id,
        message=lm15.Message.assistant([lm15.TextPart(generation.text)]),
        finish_reason=generation.finish_reason,
        usage=lm15.Usage(input_tokens=generation.prompt_tokens, output_tokens=generation.completion_tokens),
    )
