"""Self-improving multi-agent DSPy programs: each agent's own weights get better from its own experience."""

from sirius_dspy.adapter import PlainAdapter
from sirius_dspy.chart import to_mermaid, to_svg
from sirius_dspy.checkpoint import load, save
from sirius_dspy.curate import Curator
from sirius_dspy.evaluation import Evaluation, evaluate
from sirius_dspy.graph import Agent, AgentGraph, data_flow
from sirius_dspy.library import ExperienceLibrary
from sirius_dspy.local import LocalLM, LoraOptions
from sirius_dspy.optimizer import SiriuS
from sirius_dspy.repair import CriticAugmenter, RepairDemos

__all__ = [
    "Agent",
    "AgentGraph",
    "CriticAugmenter",
    "Curator",
    "Evaluation",
    "ExperienceLibrary",
    "LocalLM",
    "LoraOptions",
    "PlainAdapter",
    "RepairDemos",
    "SiriuS",
    "data_flow",
    "evaluate",
    "load",
    "save",
    "to_mermaid",
    "to_svg",
]
__version__ = "0.1.0"
