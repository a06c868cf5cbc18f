"""Self-improving multi-agent DSPy programs: each agent's own weights get better from its own experience."""

from sirius_dspy.adapter import PlainAdapter
from sirius_dspy.checkpoint import load, save
from sirius_dspy.graph.agents import Agent, AgentGraph, data_flow
from sirius_dspy.graph.chart import to_mermaid, to_svg
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.local import LocalLM, LoraOptions
from sirius_dspy.optimizer.run_dir import open_library
from sirius_dspy.optimizer.sirius import SiriuS
from sirius_dspy.repair.critic import CriticAugmenter
from sirius_dspy.repair.demos import RepairDemos
from sirius_dspy.running.evaluation import Evaluation, evaluate
from sirius_dspy.training.curate import Curator

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
    "open_library",
    "save",
    "to_mermaid",
    "to_svg",
]
__version__ = "0.1.0"
