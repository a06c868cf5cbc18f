"""vLLM: one server holds the base weights, and every agent answers with its own adapter."""

from sirius_dspy.vllm.lm import VLLMLM
from sirius_dspy.vllm.server import VLLMServer

__all__ = ["VLLMLM", "VLLMServer"]
