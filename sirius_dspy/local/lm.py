"""`LocalLM`: a `dspy.LM` that runs local weights and can be fine-tuned on this machine."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15

from sirius_dspy import checks
from sirius_dspy.errors import PromptTooLongError
from sirius_dspy.local.chat import load_chat
from sirius_dspy.local.devices import DEVICE, Device
from sirius_dspy.local.engine import Generation, GenerationOptions
from sirius_dspy.local.lora import LoraOptions, check_quantization, has_tools
from sirius_dspy.local.models import find, resolve
from sirius_dspy.local.provider import LocalProvider
from sirius_dspy.local.serving import engines, pool_key, scoring_key
from sirius_dspy.local.tool_calls import message_parts, offered_tools, tool_messages

_draws: contextvars.ContextVar[Iterator[int]] = contextvars.ContextVar("sirius_dspy_draws")
"""Numbers the candidates of one call with `n > 1`, which DSPy requests one by one with the same seed."""

_REFUSED = ("response_format", "logprobs", "tool_choice", "reasoning", "frequency_penalty", "presence_penalty")


_NO_TOOLS = (
    "The chat template of {!r} does not write tools, or not in a form in which calls can be read. Let the model write "
    "tool calls as text with `use_native_function_calling=False`."
)

_SETTINGS = {
    "model": checks.PATH,
    "revision": checks.optional(checks.TEXT),
    "temperature": checks.optional(checks.number(0)),
    "max_tokens": checks.optional(checks.whole(1)),
    "cache": checks.FLAG,
    "lora": checks.optional(checks.instance(LoraOptions)),
    "device": DEVICE,
}
"""The kind of each setting of `LocalLM`."""


class LocalEngine:
    """The engine that DSPy calls. It finds the weights by the request's model id and holds none itself.

    Args:
        device: See `LocalLM`.
    """

    def __init__(self, device: Device | None = None) -> None:
        self.device = device

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalEngine:
        return self

    def dump_state(self) -> dict[str, Any]:
        """Return the state that `load_state` needs."""
        return {"device": self.device}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> LocalEngine:
        """Restore an engine from the result of `dump_state`."""
        return cls(**state)

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request. Thread-safe."""
        options = _options(request)
        messages, tools = _messages(request), offered_tools(request)
        with engines().lend(pool_key(request.model, self.device)) as engine:
            is_able = engine.chat.calls_tools if tools else engine.chat.renders_tools
            if has_tools({"messages": messages, "tools": tools}) and not is_able:
                raise lm15.UnsupportedFeatureError(_NO_TOOLS.format(request.model), feature="tools")
            try:
                generation = engine.generate(engine.chat.prompt(messages, tools), options)
            except PromptTooLongError as error:
                raise lm15.ContextLengthError(str(error)) from error
        number = sum(len(message.get("tool_calls", ())) for message in messages)
        return _response(request.model, generation, message_parts(generation.text, number) if tools else None)


class AsyncLocalEngine(LocalEngine):
    """Like `LocalEngine`, for `acall`."""

    async def complete(self, request: lm15.Request) -> lm15.Response:  # type: ignore[override]  # DSPy's async contract
        """Answer one request without blocking the event loop."""
        call = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(_async_threads(), call, super().complete, request)


class LocalLM(dspy.LM):
    """A language model from a folder of weights or a GGUF file that runs and is fine-tuned on this machine.

    `.model` is `local/<name>@<hash of the weights>`, so equal ids mean equal weights on every machine. LM objects hold
    no weights; these are loaded at the first call at the latest, and shared by all LMs with the same id. `finetune`
    returns a new LM with a new id and leaves this one unchanged.

    A call's `rollout_id` becomes the sampling seed if no seed is given, so that samples differ but can be repeated.

    Args:
        model: A packaged name, a path of a GGUF file or a model folder, a Hugging Face id, or an id of this machine's
            index; see `sirius_dspy.local.models.find`.
        revision: A branch, tag or commit of a model on the Hugging Face hub; by default its main branch.
        temperature: 0 or `None` always takes the most likely token.
        max_tokens: Maximum number of tokens to generate.
        cache: Whether to use DSPy's response cache; off by default, because local answers are cheap to repeat.
        lora: Defaults of `finetune`; its `train_kwargs` override them.
        device: `None` takes the first that is available of CUDA, OpenVINO, and PyTorch on the CPU. With several GPUs,
            `cuda:1` keeps this LM and its training on one of them; otherwise agents are trained on all of them.
        **kwargs: Passed on to `dspy.LM`.

    Raises:
        ModelNotFoundError: The weights do not exist; the message says how to get them.
        UnreadableModelError: The weights are in a format that is not read, or the model has no chat template.
        SettingsError: A setting is of the wrong kind, out of its range, or does not fit the weights.

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
        revision: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = 256,
        cache: bool = False,
        lora: LoraOptions | None = None,
        device: Device | None = None,
        **kwargs: Any,
    ) -> None:
        numbers = {"temperature": temperature, "max_tokens": max_tokens}
        checks.check(
            "LocalLM",
            {"model": model, "revision": revision, "cache": cache, "lora": lora, "device": device, **numbers},
            _SETTINGS,
        )
        self.lora = lora or LoraOptions()
        self.device = device
        kwargs.setdefault("engine", LocalEngine(device))
        kwargs.setdefault("async_engine", AsyncLocalEngine(device))
        kwargs.setdefault("provider", LocalProvider(self.lora, device))
        weights = find(model, revision)
        check_quantization(weights, self.lora)
        super().__init__(weights.id, temperature=temperature, max_tokens=max_tokens, cache=cache, **kwargs)

    @property
    def path(self) -> Path:
        """The weights on this machine: a GGUF file, or a folder in Hugging Face's format."""
        return resolve(self.model).path

    @property
    def folder(self) -> Path:
        """The folder of the weights; for fine-tuned ones, it also holds `adapter/` and `training.json`."""
        return resolve(self.model).folder

    @property
    def supports_function_calling(self) -> bool:
        """Whether the model calls tools natively: its chat template writes them, and calls as Qwen's does."""
        return load_chat(resolve(self.model)).calls_tools

    @property
    def is_small(self) -> bool:
        """Whether the model is too small to criticize others, by the size of its files: less than two GiB."""
        return resolve(self.model).num_bytes < 2 << 30

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Call the model; see `dspy.LM`."""
        prompt, kwargs = self._add_seed(prompt, kwargs)
        token = _draws.set(itertools.count())
        try:
            return super().__call__(prompt, messages=messages, **kwargs)
        finally:
            _draws.reset(token)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Call the model without blocking the event loop; see `dspy.LM`."""
        prompt, kwargs = self._add_seed(prompt, kwargs)
        token = _draws.set(itertools.count())
        try:
            return await super().acall(prompt, messages=messages, **kwargs)
        finally:
            _draws.reset(token)

    def score(self, messages: Sequence[Mapping[str, str]], reply: str) -> tuple[float, ...]:
        """Return how likely the model is to reply with this text: the log-probability of each token, in nats.

        The last token ends the turn. One forward pass; nothing is generated, and nothing is counted as a call.

        Args:
            messages: The prompt as chat messages, with `role` and `content`.
            reply: The text of the assistant.

        Raises:
            PromptTooLongError: Prompt and reply do not fit into the context window.
            RolloutError: The engine failed.
        """
        return self.score_row({"messages": [*messages, {"role": "assistant", "content": reply}]})

    def score_row(self, row: Mapping[str, Any]) -> tuple[float, ...]:
        """Return how likely the model is to give the reply of a training row; see `score`.

        Args:
            row: `messages`, the last of which is the reply, and `tools` if they were offered natively.
        """
        *messages, reply = row["messages"]
        tools = row.get("tools", ())
        with engines().lend(scoring_key(self.model, self.device)) as engine:
            chat = engine.chat
            return tuple(engine.score(chat.prompt(messages, tools), chat.reply_text(messages, reply, tools)))

    def _add_seed(self, prompt: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Use the rollout id of a call as its seed, unless it has one: DSPy hides rollout ids from the engine."""
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
        """Return plain values from which `load_state` restores this LM; the constructor creates the engines again."""
        state = {key: value for key, value in super().dump_state().items() if key not in ("engine", "async_engine")}
        return {**state, "device": self.device, "lora": dataclasses.asdict(self.lora)}

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> LocalLM:
        """Restore an LM from the result of `dump_state`; its weights must be in this machine's index."""
        values = dict(state)
        values["lora"] = LoraOptions(**values.get("lora") or {})
        loaded: LocalLM = super().load_state(values, allow_custom_lm_class=allow_custom_lm_class)
        return loaded

    @classmethod
    def from_folder(cls, folder: Path, state: dict[str, Any]) -> LocalLM:
        """Load the LM from a checkpoint's weights, and add them to this machine's index."""
        return cls.load_state({**state, "model": folder})


@lru_cache(maxsize=1)
def _async_threads() -> ThreadPoolExecutor:
    """Create a pool with one thread per request of a batch; the default pool of `asyncio` is much smaller."""
    return ThreadPoolExecutor(64, thread_name_prefix="local-lm")


def _options(request: lm15.Request) -> GenerationOptions:
    config = request.config
    refused = [name for name in _REFUSED if getattr(config, name, None)]
    choice = config.tool_choice
    if choice is not None and choice.mode == "auto" and not choice.allowed:
        refused.remove("tool_choice")
    if refused:
        feature = f"config.{refused[0]}"
        raise lm15.UnsupportedFeatureError(f"A local model does not support {feature!r}. Remove it.", feature=feature)
    given = {name: getattr(config, name) for name in ("max_tokens", "temperature", "top_p", "top_k", "seed")}
    try:
        options = GenerationOptions(
            stop=tuple(config.stop or ()), **{name: value for name, value in given.items() if value is not None}
        )
    except ValueError as error:
        raise lm15.InvalidRequestError(str(error)) from error
    return _with_draw(options)


def _with_draw(options: GenerationOptions) -> GenerationOptions:
    """Give every further candidate of one call another seed."""
    draw = next(_draws.get(iter((0,))), 0)
    if draw == 0 or options.seed is None:
        return options
    return dataclasses.replace(options, seed=options.seed + draw * 1_000_003)


def _messages(request: lm15.Request) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for message in request.messages:
        of_tools = tool_messages(message, names)
        messages += of_tools or [{"role": message.role, "content": _text(message.text)}]
    if request.system is None:
        return messages
    parts = [lm15.TextPart(request.system)] if isinstance(request.system, str) else request.system
    system = "\n".join(_text(getattr(part, "text", None)) for part in parts)
    return [{"role": "system", "content": system}, *messages]


def _text(text: str | None) -> str:
    if text is None:
        raise lm15.UnsupportedFeatureError("A local model reads text only. Remove images and other parts.")
    return text


def _response(model_id: str, generation: Generation, parts: list[Any] | None) -> lm15.Response:
    message = lm15.Message.assistant(parts or [lm15.TextPart(generation.text)])
    has_calls = any(isinstance(part, lm15.ToolCallPart) for part in message.parts)
    return lm15.Response(
        id=None,
        model=model_id,
        message=message,
        finish_reason="tool_call" if has_calls and generation.finish_reason == "stop" else generation.finish_reason,
        usage=lm15.Usage(input_tokens=generation.prompt_tokens, output_tokens=generation.completion_tokens),
    )
