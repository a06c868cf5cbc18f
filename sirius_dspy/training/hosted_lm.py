"""`ToolCallingLM`: a fine-tuned hosted LM that goes on calling tools natively."""

from __future__ import annotations

import dspy


class ToolCallingLM(dspy.LM):
    """A `dspy.LM` of which it is known that it calls tools natively.

    DSPy looks up by its name what an LM can do, and knows no fine-tuned ones. Their adapter would ask them to write
    tool calls as text, which is not what they were trained on.
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
