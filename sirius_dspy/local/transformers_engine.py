"""The engine for CUDA and MPS, and for CPUs without OpenVINO: PyTorch and Transformers, with continuous batching."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sirius_dspy.errors import MissingDependencyError, RolloutError
from sirius_dspy.local.batching import BatchingEngine, Call, Written
from sirius_dspy.local.chat import Chat, no_progress_bars
from sirius_dspy.local.home import INSTALL, home
from sirius_dspy.local.memory import free_device_memory, is_out_of_memory
from sirius_dspy.local.weights import Weights

if TYPE_CHECKING:
    from sirius_dspy.local.running import Row, RunningBatch

logger = logging.getLogger(__name__)

SCORED_TOGETHER = 1024
"""Maximum number of tokens in one batch of several replies to score. Each takes memory for the scores of the whole
vocabulary."""

READ_TOGETHER = 16384
"""Maximum number of tokens in one pass over the prompts of several new rows, with padding. The others join at the next
token, so that the rows at work do not wait long."""


class TransformersEngine(BatchingEngine):
    """Answers many threads with continuous batching: a request joins at the next token and leaves when it is done.

    Every row has its own temperature, seed and length, so any requests can share a batch. If the device has too little
    memory for a batch, half of its rows wait, and go on later.

    Args:
        weights: A model folder, or a GGUF file. Of a GGUF file, the de-quantized copy in the home folder is used, and
            created if needed, as for training.
        chat: The tokenizer of the weights.
        device: `cpu`, `cuda`, `cuda:1` or another number, or `mps`. If an operation of the model is missing on MPS, the
            engine moves to the CPU, with a warning.
        adapter: A PEFT adapter to add to the weights.
        max_sequences: Maximum number of requests in the batch.

    Raises:
        MissingDependencyError: `torch`, `transformers` or `peft` is not installed.
        UnreadableModelError: Transformers does not know the architecture.
    """

    gathers_while_busy = False

    def __init__(
        self,
        weights: Weights,
        chat: Chat,
        *,
        device: str = "cpu",
        adapter: Path | None = None,
        max_sequences: int = 64,
    ) -> None:
        super().__init__(chat)
        self.device = device
        self.max_sequences = max_sequences
        self._model: Any = _load(weights, adapter).to(device).eval()
        self._waiting: deque[Row] = deque()
        self._running: RunningBatch | None = None
        self._start()

    def _advance(self, admitted: list[Call]) -> None:
        from sirius_dspy.local.running import Row

        self._live += admitted  # also calls to score: an error must reach every caller
        self._waiting.extend(Row.start(call) for call in admitted if not call.scored)
        try:
            for calls in _split([call for call in self._live if call.scored]):
                _score(self._model, self.chat, calls)
            self._continue()
        except NotImplementedError as error:
            if not self.device.startswith("mps"):
                raise
            self._move_to_cpu(error)
        self._live = [call for call in self._live if not call.done.done()]

    def _continue(self) -> None:
        """Write one token in every row of the batch, with some of those that wait."""
        from sirius_dspy.local.running import RunningBatch

        self._running = self._running or RunningBatch(self._model, self.chat)
        joining = self._next_rows(self._running)
        size = len(self._running.rows) + len(joining)
        try:
            self._running.advance(joining)
            return
        except RuntimeError as error:  # the batch may have written half of a token
            rows = [row for row in (*self._running.clear(), *joining) if not row.is_done]
            self._waiting.extendleft(reversed(rows))
            if not is_out_of_memory(error):
                raise
        free_device_memory()
        self._make_batch_smaller(size)

    def _next_rows(self, running: RunningBatch) -> list[Row]:
        """Take the rows that join now from those that wait."""
        rows: list[Row] = []
        self._waiting = deque(row for row in self._waiting if not row.is_done)
        room = self.max_sequences - len(running.rows) if running.is_open else 0
        while self._waiting and len(rows) < room:
            longest = max(len(row) for row in (*rows, self._waiting[0]))
            if rows and longest * (len(rows) + 1) > READ_TOGETHER:
                break
            rows.append(self._waiting.popleft())
        return rows

    def _make_batch_smaller(self, size: int) -> None:
        """Let the rows of a batch that did not fit go on, half as many at a time. One that is alone fails."""
        if size > 1:
            self.max_sequences = size // 2
            text = "%d requests at a time do not fit into the memory of %s; from now on it is %d."
            logger.warning(text, size, self.device, self.max_sequences)
            return
        self._waiting.popleft().call.done.set_exception(
            RolloutError(
                f"A request does not fit into the memory of {self.device}, even alone. End what else uses it, shorten "
                "the inputs, or choose another `device`."
            )
        )

    def _move_to_cpu(self, error: NotImplementedError) -> None:
        """Go on without MPS."""
        logger.warning("An operation of this model is missing on MPS, so it runs on the CPU from now on: %s", error)
        if self._running is not None:
            self._waiting.extendleft(reversed(self._running.clear()))
        self.device = "cpu"
        self._model.to("cpu")

    def _release(self) -> None:
        self._model, self._running = None, None
        self._waiting.clear()
        if self.device != "cpu":
            free_device_memory()  # for other engines, and for the process that trains


def _split(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """Split calls to score into batches, those with replies of similar length together."""
    batch: list[Call] = []
    for call in sorted(calls, key=lambda call: len(call.scored)):
        if batch and (len(batch) + 1) * len(call.scored) > SCORED_TOGETHER:
            yield batch
            batch = []
        batch.append(call)
    if batch:
        yield batch


def _score(model: Any, chat: Chat, calls: Sequence[Call]) -> None:
    """Answer calls with the log-probability of each token of their given replies."""
    import torch

    from sirius_dspy.local.running import known, mark, pad

    rows = [[*call.ids, *call.scored] for call in calls]
    tokens, mask = pad(rows, chat.end_id, model.device), mark([*map(len, rows)], model.device)
    longest = max(len(call.scored) for call in calls)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            use_cache=False,
            **known(model, position_ids=positions, logits_to_keep=longest + 1),
        )
        scores = output.logits[:, -longest - 1 : -1].float()
        given = scores.gather(-1, tokens[:, -longest:, None])[:, :, 0] - scores.logsumexp(-1)
    for call, row in zip(calls, given.tolist(), strict=True):
        call.done.set_result(Written(list(call.scored), "stop", row[longest - len(call.scored) :]))


def _load(weights: Weights, adapter: Path | None) -> Any:
    try:
        from peft import PeftModel

        from sirius_dspy.local.train import load_model
    except ImportError as error:
        raise MissingDependencyError(f"This engine needs PyTorch and Transformers. Run `{INSTALL}`.") from error
    with no_progress_bars():
        model = load_model(weights.path, home("training", weights.digits))
    return model if adapter is None else PeftModel.from_pretrained(model, str(adapter))
