"""The engine for CUDA and MPS, and for CPUs without OpenVINO: PyTorch and Transformers.

Batches are static: waiting requests form a batch that runs until the last one is done, and each is answered when it
finishes. Every row has its own temperature, seed and length, so any requests can share a batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sirius_dspy.errors import MissingDependencyError
from sirius_dspy.local.batching import BatchingEngine, Call, Written, cut_at_stop
from sirius_dspy.local.chat import Chat, no_progress_bars
from sirius_dspy.local.engine import GenerationOptions
from sirius_dspy.local.home import INSTALL, home
from sirius_dspy.local.weights import Weights

SCORED_TOGETHER = 1024
"""Maximum number of tokens in one batch of several replies to score. Each takes memory for the scores of the whole
vocabulary."""


class TransformersEngine(BatchingEngine):
    """Answers many threads in static batches.

    Args:
        weights: A model folder, or a GGUF file. Of a GGUF file, the de-quantized copy in the home folder is used, and
            created if needed, as for training.
        chat: The tokenizer of the weights.
        device: `cpu`, `cuda` or `mps`.
        adapter: A PEFT adapter to add to the weights.
        max_sequences: Maximum number of requests in one batch.

    Raises:
        MissingDependencyError: `torch`, `transformers` or `peft` is not installed.
        UnreadableModelError: Transformers does not know the architecture.
    """

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
        self._start()

    def _advance(self, admitted: list[Call]) -> None:
        self._live += admitted  # also calls to score: an error must reach every caller
        for calls in _split([call for call in self._live if call.scored]):
            _score(self._model, self.chat, calls)
        self._live = [call for call in self._live if not call.done.done()]
        batch = self._live[: self.max_sequences]
        if batch:
            _Batch(self._model, self.chat, batch).run()
        self._live = self._live[self.max_sequences :]

    def _release(self) -> None:
        self._model = None


class _Batch:
    """The rows of one batch, continued one token at a time."""

    def __init__(self, model: Any, chat: Chat, calls: list[Call]) -> None:
        import torch

        self.model = model
        self.chat = chat
        self.calls = calls
        self.device = model.device
        self.written: list[list[int]] = [[] for _ in calls]
        self.generators = [
            torch.Generator(device="cpu").manual_seed(call.options.rng_seed) for call in calls
        ]  # on the CPU, so that equal seeds give equal samples on every device

    def run(self) -> None:
        """Continue until every call is answered."""
        import torch

        tokens, mask = _pad([call.ids for call in self.calls], self.chat.end_id, self.device)
        cache = None
        with torch.inference_mode():
            while not all(call.done.done() for call in self.calls):
                positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
                output = self.model(
                    input_ids=tokens,
                    attention_mask=mask,
                    past_key_values=cache,
                    use_cache=True,
                    **_known(self.model, position_ids=positions, logits_to_keep=1),
                )
                cache = output.past_key_values
                chosen = self._choose(output.logits[:, -1].float())
                self._settle(chosen)
                tokens = torch.tensor(chosen, device=self.device)[:, None]
                mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)

    def _choose(self, logits: Any) -> list[int]:
        """Choose the next token of every row from scores `(batch, vocabulary)`."""
        chosen = logits.argmax(-1)
        rows = [row for row, call in enumerate(self.calls) if call.options.temperature > 0 and not call.done.done()]
        if rows:
            options = [self.calls[row].options for row in rows]
            chosen[rows] = _sample(logits[rows], options, [self.generators[row] for row in rows])
        tokens: list[int] = chosen.tolist()
        return tokens

    def _settle(self, chosen: list[int]) -> None:
        """Append the new tokens, and answer the calls that are done."""
        for call, written, token in zip(self.calls, self.written, chosen, strict=True):
            if call.done.done():
                continue
            written.append(token)
            if token in self.chat.end_ids or self._has_stopped(call, written):
                call.done.set_result(Written(written, "stop"))
            elif len(written) >= call.max_tokens:
                call.done.set_result(Written(written, "length"))

    def _has_stopped(self, call: Call, written: list[int]) -> bool:
        if not call.options.stop:
            return False
        text = self.chat.decode(written)
        return cut_at_stop(text, call.options.stop) != text


def _known(model: Any, **values: Any) -> dict[str, Any]:
    """Return those arguments that the model has; some have no numbers of positions, or cannot leave out scores."""
    accepted = inspect.signature(model.forward).parameters
    return {name: value for name, value in values.items() if name in accepted}


def _pad(rows: Sequence[Sequence[int]], filler: int, device: Any) -> tuple[Any, Any]:
    """Return rows of tokens `(batch, time)`, padded on the left so that all end together, and their mask."""
    import torch

    width = max(map(len, rows))
    tokens = [[filler] * (width - len(row)) + [*row] for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


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

    tokens, mask = _pad([[*call.ids, *call.scored] for call in calls], chat.end_id, model.device)
    longest = max(len(call.scored) for call in calls)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            use_cache=False,
            **_known(model, position_ids=positions, logits_to_keep=longest + 1),
        )
        scores = output.logits[:, -longest - 1 : -1].float()
        given = scores.gather(-1, tokens[:, -longest:, None])[:, :, 0] - scores.logsumexp(-1)
    for call, row in zip(calls, given.tolist(), strict=True):
        call.done.set_result(Written(list(call.scored), "stop", row[longest - len(call.scored) :]))


def _sample(logits: Any, options: Sequence[GenerationOptions], generators: Sequence[Any]) -> Any:
    """Draw a token of each row of scores `(batch, vocabulary)`, with its own temperature, `top_k` and `top_p`."""
    import torch

    def column(values: Sequence[float]) -> Any:
        return torch.tensor(values, device=logits.device)[:, None]

    scores, order = (logits / column([option.temperature for option in options])).sort(descending=True)
    probabilities = scores.softmax(-1)
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    probabilities[ranks >= column([option.top_k or len(ranks) for option in options])] = 0
    sums = probabilities.cumsum(-1)
    kept = sums - probabilities < column([option.top_p for option in options]) * sums[:, -1:]
    sums = (probabilities * kept).cumsum(-1)
    drawn = column([torch.rand((), generator=generator).item() for generator in generators]) * sums[:, -1:]
    places = torch.searchsorted(sums, drawn, right=True).minimum(kept.sum(-1, keepdim=True) - 1)
    return order.gather(-1, places)[:, 0]


def _load(weights: Weights, adapter: Path | None) -> Any:
    try:
        from peft import PeftModel

        from sirius_dspy.local.train import load_model
    except ImportError as error:
        raise MissingDependencyError(f"This engine needs PyTorch and Transformers. Run `{INSTALL}`.") from error
    with no_progress_bars():
        model = load_model(weights.path, home("training", weights.digits))
    return model if adapter is None else PeftModel.from_pretrained(model, str(adapter))
