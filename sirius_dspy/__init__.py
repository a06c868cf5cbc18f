"""Self-improving multi-agent DSPy programs: each agent is fine-tuned on the program's own successful runs."""

from typing import TYPE_CHECKING

from sirius_dspy import errors
from sirius_dspy.adapter import PlainAdapter
from sirius_dspy.checkpoint import load, save
from sirius_dspy.cluster.trainer import RayTrainer
from sirius_dspy.credit.credit import Credit
from sirius_dspy.credit.precision import Precision, measure_precision
from sirius_dspy.credit.reading import read_credits
from sirius_dspy.credit.values import StepCredit
from sirius_dspy.executors import ProcessExecutor, RayExecutor
from sirius_dspy.graph.agents import AgentGraph
from sirius_dspy.graph.chart import to_mermaid, to_svg
from sirius_dspy.graph.flow import data_flow
from sirius_dspy.graph.wiring import Agent
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.trl import Exported, TRLExport
from sirius_dspy.local import LocalLM, LoraOptions, PreferenceOptions
from sirius_dspy.optimizer.budget import Budget
from sirius_dspy.optimizer.exporting import open_export
from sirius_dspy.optimizer.gate import Gain, Gate, Trial, ValsetGate
from sirius_dspy.optimizer.opening import open_library
from sirius_dspy.optimizer.plan import Plan
from sirius_dspy.optimizer.results import CompileResult, IterationResult
from sirius_dspy.optimizer.schedule import EasyToHard, ExampleRecord, LeastTrainedFirst, Schedule
from sirius_dspy.optimizer.settings import Collect, SharedWeights
from sirius_dspy.optimizer.sirius import SiriuS
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.critic import CriticAugmenter
from sirius_dspy.repair.critic_training import CriticTraining, LearningCritic
from sirius_dspy.repair.demos import RepairDemos
from sirius_dspy.repair.hint import HintAugmenter
from sirius_dspy.repair.label import LabelAugmenter
from sirius_dspy.repair.ladder import LadderAugmenter
from sirius_dspy.repair.leak import Guard, LeakGuard
from sirius_dspy.repair.resample import ResampleAugmenter
from sirius_dspy.running.evaluation import Evaluation, evaluate
from sirius_dspy.running.patience import Patience
from sirius_dspy.running.standing import Standing
from sirius_dspy.tracking.events import Tracker, Trackers
from sirius_dspy.tracking.progress import RichProgress
from sirius_dspy.training.balanced import BalancedCurator
from sirius_dspy.training.curate import Curator, Row, TrainingSet
from sirius_dspy.training.hosted import HostedTrainer
from sirius_dspy.training.hosted_lm import ToolCallingLM
from sirius_dspy.training.preferences import PreferenceTrainer
from sirius_dspy.training.suitable import SuitableTrainer
from sirius_dspy.training.trainers import ProviderTrainer, Trainer, TrainingRequest
from sirius_dspy.training.weigh import PassRateWeights
from sirius_dspy.trajectory import Attempt, Edit, Repair, Step, Trajectory

if TYPE_CHECKING:
    from sirius_dspy.mlflow import MLflowTracker

__all__ = [
    "Agent",
    "AgentGraph",
    "Attempt",
    "Augmenter",
    "BalancedCurator",
    "Budget",
    "Collect",
    "CompileResult",
    "Credit",
    "CriticAugmenter",
    "CriticTraining",
    "Curator",
    "EasyToHard",
    "Edit",
    "Evaluation",
    "ExampleRecord",
    "ExperienceLibrary",
    "Exported",
    "Gain",
    "Gate",
    "Guard",
    "HintAugmenter",
    "HostedTrainer",
    "IterationResult",
    "LabelAugmenter",
    "LadderAugmenter",
    "LeakGuard",
    "LearningCritic",
    "LeastTrainedFirst",
    "LocalLM",
    "LoraOptions",
    "MLflowTracker",
    "PassRateWeights",
    "Patience",
    "PlainAdapter",
    "Plan",
    "Precision",
    "PreferenceOptions",
    "PreferenceTrainer",
    "ProcessExecutor",
    "ProviderTrainer",
    "RayExecutor",
    "RayTrainer",
    "Repair",
    "RepairContext",
    "RepairDemos",
    "RepairOutcome",
    "ResampleAugmenter",
    "RichProgress",
    "Row",
    "Schedule",
    "SharedWeights",
    "SiriuS",
    "Standing",
    "Step",
    "StepCredit",
    "SuitableTrainer",
    "TRLExport",
    "ToolCallingLM",
    "Tracker",
    "Trackers",
    "Trainer",
    "TrainingRequest",
    "TrainingSet",
    "Trajectory",
    "Trial",
    "ValsetGate",
    "data_flow",
    "errors",
    "evaluate",
    "load",
    "measure_precision",
    "open_export",
    "open_library",
    "read_credits",
    "save",
    "to_mermaid",
    "to_svg",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the tracker for MLflow when it is asked for: MLflow takes a second to import."""
    if name == "MLflowTracker":
        from sirius_dspy.mlflow import MLflowTracker

        return MLflowTracker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
