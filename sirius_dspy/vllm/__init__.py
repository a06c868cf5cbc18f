"""vLLM: one server holds the base weights, and every agent answers with its own adapter."""

from sirius_dspy.vllm.canary import Canary
from sirius_dspy.vllm.lm import VLLMLM
from sirius_dspy.vllm.server import VLLMServer
from sirius_dspy.vllm.trainer import Training, VLLMTrainer

__all__ = ["VLLMLM", "Canary", "Training", "VLLMServer", "VLLMTrainer"]
