"""The engine for CPUs: OpenVINO GenAI with continuous batching, directly from a GGUF file."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from sirius_dspy.errors import MissingDependencyError, RolloutError
from sirius_dspy.local.batching import BatchingEngine, Call, News, Written
from sirius_dspy.local.chat import Chat
from sirius_dspy.local.engine import GenerationOptions
from sirius_dspy.local.home import INSTALL

PRECISION = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
"""As fast as OpenVINO's bfloat16, because the matrices have 8 bits in both cases, and an answer does not depend on the
other
requests in the batch: of 64 prompts in another order, all 64 got the same answer, with bfloat16 only 18."""


class OpenVINOEngine(BatchingEngine):
    """Answers many threads with continuous batching: a request joins at the next token and leaves when it is done.

    Args:
        gguf: The weights of a Llama or Qwen model.
        chat: The tokenizer of the weights.
        max_sequences: Maximum number of requests per step; 64 gave nine times as many tokens per second as one.
        cache_gb: Memory for keys and values, in whole GB, allocated as needed. One GB holds about 80,000 tokens of a
            135M model.
        prefix_caching: Whether to reuse keys and values of common prefixes, such as demonstrations; three times as fast
            with four demonstrations. An engine that scores replies must not: what is reused gets no numbers.
        turn: Lock that is held during each step. Pipelines that share cores are faster one at a time, so pass the same
            lock to all of them.

    Raises:
        MissingDependencyError: `openvino_genai` is not installed.
        RolloutError: OpenVINO cannot read the file.
    """

    def __init__(
        self,
        gguf: Path,
        chat: Chat,
        *,
        max_sequences: int = 64,
        cache_gb: int = 1,
        prefix_caching: bool = True,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        super().__init__(chat)
        self._turn = turn or nullcontext()
        self._pipeline: Any = _pipeline(gguf, _scheduler(max_sequences, cache_gb, prefix_caching))
        self._handles: dict[Call, Any] = {}
        self._streamed: dict[Call, list[Any]] = {}  # what was taken out of handles, which give it only once
        self._companion: Any = None
        self._numbers = itertools.count()
        self._start()

    def _advance(self, admitted: list[Call]) -> None:
        self._stop_abandoned()
        for call in admitted:
            self._admit(call)
        self._keep_company()
        if self._live:
            with self._turn:
                self._pipeline.step()
        for call in self._live:
            if call.news is not None:
                self._pass_on(call, call.news)
            _hand_out(self._handles[call], call, self._streamed.get(call, ()))
        self._live = [call for call in self._live if not call.done.done()]
        self._handles = {call: self._handles[call] for call in self._live}
        self._streamed = {call: outputs for call, outputs in self._streamed.items() if call in self._handles}
        if not self._live:
            self._keep_company()
            self._drain()

    def _stop_abandoned(self) -> None:
        """Take calls out of the batch that are done before their end, because their callers have gone."""
        for call in self._live:
            if call.done.done():
                self._handles.pop(call).stop()
        self._live = [call for call in self._live if not call.done.done()]

    def _pass_on(self, call: Call, news: News) -> None:
        """Pass on the tokens that a step has written."""
        handle = self._handles[call]
        while handle.can_read():
            for output in handle.read().values():
                self._streamed.setdefault(call, []).append(output)
                news.put(list(output.generated_ids))

    def _admit(self, call: Call) -> None:
        """Add a call to the batch. If OpenVINO refuses it, only this call fails."""
        options = dataclasses.replace(call.options, max_tokens=call.max_tokens)
        try:
            self._handles[call] = self._add([*call.ids, *call.scored], options, is_scored=bool(call.scored))
        except RuntimeError as error:
            call.done.set_exception(RolloutError(f"OpenVINO refused a request: {error}."))
        else:
            self._live.append(call)

    def _add(
        self, ids: list[int], options: GenerationOptions, *, ignore_end: bool = False, is_scored: bool = False
    ) -> Any:
        import numpy as np
        from openvino_genai import openvino

        config = _config(options, self.chat)
        config.ignore_eos = ignore_end
        if is_scored:
            config.max_new_tokens, config.echo, config.logprobs = 1, True, 1  # an echo repeats the prompt, with numbers
        prompt = openvino.Tensor(np.array([ids], dtype=np.int64))
        return self._pipeline.add_request(next(self._numbers), prompt, config)

    def _keep_company(self) -> None:
        """Add a dummy request to the batch while it contains only one request.

        OpenVINO multiplies a single row with another kernel, which does not round activations to 8 bits. The last
        request of a batch would change kernels halfway, and its sample could not be repeated: 0 of 8 were, and 8 of 8
        with the dummy.
        """
        lone = len(self._live) == 1
        if self._companion is not None and (not lone or _is_over(self._companion)):
            self._companion.stop()
            self._companion = None
        if lone and self._companion is None:
            options = GenerationOptions(max_tokens=256)
            self._companion = self._add([self.chat.end_id] * 2, options, ignore_end=True)

    def _drain(self) -> None:
        """Remove stopped requests from the pipeline, which reports a leak if it is deleted with requests in it."""
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def _release(self) -> None:
        for handle in (*self._handles.values(), *filter(None, [self._companion])):
            handle.stop()
        with suppress(RuntimeError):  # the pipeline itself may have failed
            self._drain()
        self._handles, self._streamed, self._companion, self._pipeline = {}, {}, None, None


def _scheduler(max_sequences: int, cache_gb: int, prefix_caching: bool) -> Any:
    try:
        import openvino_genai
        import openvino_tokenizers
    except ImportError as error:
        raise MissingDependencyError(f"Local models on the CPU run on openvino-genai. Run `{INSTALL}`.") from error
    # OpenVINO sets this variable itself while it loads a model, and removes it afterwards, also for another thread that
    # is loading: of 24 loads in 4 threads, 3 did not find the library.
    os.environ.setdefault("OPENVINO_TOKENIZERS_PATH_GENAI", str(openvino_tokenizers._ext_path))
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = max_sequences
    scheduler.cache_size = cache_gb
    scheduler.enable_prefix_caching = prefix_caching
    return scheduler


def _pipeline(gguf: Path, scheduler: Any) -> Any:
    """Load the weights, in a thread that ends afterwards.

    OpenVINO gives the loading thread its own signal stack, and frees it together with the pipeline. In the main thread,
    where Python's signal handlers run, the next Ctrl-C would then be a segmentation fault.

    OpenVINO's cache of compiled models (`CACHE_DIR`) is left off: with a GGUF file it writes as much as the model holds
    and loads no faster. Of the 5.4 CPU seconds that SmolLM2-135M takes, 2.5 go into reading the file and building the
    graph, which that cache does not spare.
    """
    import openvino_genai

    try:
        with ThreadPoolExecutor(1, thread_name_prefix="openvino-load") as loader:
            return loader.submit(
                openvino_genai.ContinuousBatchingPipeline, str(gguf), scheduler, "CPU", PRECISION
            ).result()
    except RuntimeError as error:
        raise RolloutError(
            f"OpenVINO cannot read the model {str(gguf)!r}: {error}. Expected a Llama or Qwen GGUF file; copy it again."
        ) from error


def _config(options: GenerationOptions, chat: Chat) -> Any:
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = options.max_tokens
    config.eos_token_id = chat.end_id
    config.stop_token_ids = set(chat.end_ids)
    config.apply_chat_template = False
    config.stop_strings = set(options.stop)
    config.include_stop_str_in_output = True  # otherwise whole tokens are dropped, including their text before the stop
    config.rng_seed = options.rng_seed
    if options.temperature > 0:
        config.do_sample = True
        config.temperature = options.temperature
        config.top_p = options.top_p
        if options.top_k is not None:
            config.top_k = options.top_k
    return config


def _is_over(handle: Any) -> bool:
    from openvino_genai import GenerationStatus

    return bool(handle.get_status() != GenerationStatus.RUNNING)


def _hand_out(handle: Any, call: Call, streamed: Sequence[Any] = ()) -> None:
    """Resolve a call if its request is finished.

    Args:
        handle: Of the request.
        call: Gets the tokens.
        streamed: What was taken out of the handle before.
    """
    from openvino_genai import GenerationFinishReason, GenerationStatus

    if not _is_over(handle):
        return
    status = handle.get_status()
    if status != GenerationStatus.FINISHED:
        problem = f"OpenVINO dropped a request with {len(call.ids)} prompt tokens ({status.name})"
        call.done.set_exception(RolloutError(f"{problem}: the key-value cache is full. Set a larger `cache_gb`."))
        return
    written = [*streamed, *handle.read_all()]
    if not written:  # the model ended its reply at once
        call.done.set_result(Written([], "stop"))
        return
    if call.scored:
        start = len(call.ids)
        log_probs = written[0].generated_log_probs[start : start + len(call.scored)]
        call.done.set_result(Written(list(call.scored), "stop", log_probs))
        return
    by_length = written[-1].finish_reason == GenerationFinishReason.LENGTH
    ids = [token for output in written for token in output.generated_ids]
    call.done.set_result(Written(ids, "length" if by_length else "stop"))
