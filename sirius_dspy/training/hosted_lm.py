"""`ToolCallingLM`: a fine-tuned hosted LM that goes on calling tools natively."""

from __future__ import annotations

import dspy


class ToolCallingLM(dspy.LM):
    """A `dspy.LM` of a server that calls tools natively, though DSPy does not know it.

    DSPy looks up by its name what an LM can do, and knows neither fine-tuned ones nor those of your own server. An
    adapter would ask them to write tool calls as text, and fine-tuned ones were not trained on that. `HostedTrainer`
    returns such LMs where the untrained ones called tools natively.

    Examples:
        ```python
        lm = ToolCallingLM("openai/Qwen/Qwen3-0.6B", api_base="http://localhost:8000/v1", api_key="none")
        ```
    """

    @property
    def supports_function_calling(self) -> bool:
        """Always true."""
        return True


def retrained(lm: dspy.LM, model: str) -> dspy.LM:
    """Return the LM under the name of its fine-tuned model, with which it calls tools natively as before."""
    trained = lm.copy(model=model)
    is_native = getattr(dspy.settings.adapter, "use_native_function_calling", False)
    if type(trained) is not dspy.LM or not is_native or not lm.supports_function_calling:
        return trained
    if trained.supports_function_calling:
        return trained
    calling = object.__new__(ToolCallingLM)
    vars(calling).update(vars(trained))
    return calling
