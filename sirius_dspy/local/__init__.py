"""The embedded stack: runs and fine-tunes open weights on this machine, without a key, server or download hub."""

from sirius_dspy.local.lm import LocalLM
from sirius_dspy.local.lora import LoraOptions
from sirius_dspy.local.openvino_engine import OpenVINOEngine
from sirius_dspy.local.preferences import PreferenceOptions
from sirius_dspy.local.transformers_engine import TransformersEngine

__all__ = ["LocalLM", "LoraOptions", "OpenVINOEngine", "PreferenceOptions", "TransformersEngine"]
