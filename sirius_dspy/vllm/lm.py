"""`VLLMLM`: a `dspy.LM` that answers from a `VLLMServer`, with the base weights or with an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
from dspy.clients.provider import Provider

from sirius_dspy.errors import UnpreparedProgramError
from sirius_dspy.training.trainers import Trainer
from sirius_dspy.vllm.canary import Canary
from sirius_dspy.vllm.server import VLLMServer

PREFIX = "openai/"
"""DSPy's name of the protocol, before the name on the server."""


class VLLMProvider(Provider):
    """Loads the adapter of an LM into its server, and unloads it. Its `trainer` trains."""

    def trainer(self) -> Trainer:
        """Return the trainer for its LMs, here `VLLMTrainer()`; `SiriuS` asks if it was given none."""
        from sirius_dspy.vllm.trainer import VLLMTrainer  # it needs `VLLMLM`

        return VLLMTrainer()

    def launch(  # type: ignore[override]  # DSPy declares it static and calls it on the instance
        self, lm: dspy.LM, launch_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Load the adapter, and prove by its canary that it answers. Does nothing for the base weights.

        Raises:
            TrainingError: The server refused it.
            AdapterError: Other weights answer than were trained.
        """
        if not isinstance(lm, VLLMLM) or lm.adapter is None:
            return
        lm.server.start()
        name = lm.served_name
        lm.server.load(name, lm.adapter)
        if (canary := Canary.read(lm.adapter)) is not None:
            try:
                canary.prove(lm.server, name)
            except BaseException:
                lm.server.unload(name)
                raise

    def kill(  # type: ignore[override]  # as above
        self, lm: dspy.LM, launch_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Unload the adapter. Does nothing for the base weights, or if the server has ended."""
        if isinstance(lm, VLLMLM) and lm.adapter is not None and lm.server.is_running:
            lm.server.unload(lm.served_name)


class VLLMLM(dspy.LM):
    """A language model on a `VLLMServer`. `VLLMTrainer` makes new ones out of it, each with an adapter.

    Args:
        server: The server. The first call starts it if it is not your own.
        temperature: 0 always takes the most likely token.
        max_tokens: Maximum number of tokens to generate.
        cache: Whether to use DSPy's response cache.
        **kwargs: Passed on to `dspy.LM`.

    Examples:
        ```python
        server = VLLMServer("Qwen/Qwen3-0.6B", max_loras=2)
        program.set_lm(VLLMLM(server, max_tokens=512))
        ```
    """

    def __init__(
        self,
        server: VLLMServer,
        *,
        temperature: float | None = None,
        max_tokens: int | None = 512,
        cache: bool = False,
        **kwargs: Any,
    ) -> None:
        if not isinstance(server, VLLMServer):
            raise UnpreparedProgramError(f"`server` of VLLMLM is {server!r}, expected a `VLLMServer`.")
        self._server = server
        self._adapter: Path | None = None
        settings = {"api_base": server.url, "api_key": server.key, "provider": VLLMProvider(), **kwargs}
        model = settings.pop("model", PREFIX + server.name)
        super().__init__(model, temperature=temperature, max_tokens=max_tokens, cache=cache, **settings)

    @property
    def server(self) -> VLLMServer:
        """The server that answers."""
        return self._server

    @property
    def adapter(self) -> Path | None:
        """The PEFT folder of the weights; `None` for the base weights."""
        return self._adapter

    @property
    def served_name(self) -> str:
        """The name of the weights on the server."""
        return self.model.removeprefix(PREFIX)

    def with_adapter(self, name: str, folder: Path) -> VLLMLM:
        """Return an LM with an adapter, which answers after `launch`.

        Args:
            name: The name to load it under; see `VLLMServer.load`.
            folder: The PEFT folder.
        """
        copied: VLLMLM = self.copy(model=PREFIX + name)
        copied._adapter = folder
        return copied

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Call the model; see `dspy.LM`."""
        self._server.ensure_started()
        try:
            with self._server.calls.call():
                return super().__call__(prompt, messages=messages, **kwargs)
        except Exception:
            self._server.check_alive()
            raise

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Call the model without blocking the event loop; see `dspy.LM`."""
        self._server.ensure_started()
        try:
            async with self._server.calls.acall():
                return await super().acall(prompt, messages=messages, **kwargs)
        except Exception:
            self._server.check_alive()
            raise
