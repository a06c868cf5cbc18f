"""Experiments: methods, seeds and one task, on equal budgets, as a table that can be believed.

recipe.py     what makes an experiment, in code or in a TOML file
task.py       the task that it names; lms.py the LM
methods.py    the methods that it can name
run.py        Experiment: checks, cells, resuming; ledger.py counts over interruptions
cell.py       a method with a seed, and its answers
results.py    every number; render.py and plot.py show them
observer.py   who is told; tracking.py tells MLflow
"""

from sirius_dspy.experiment.cell import Cell, Outcome
from sirius_dspy.experiment.errors import ExperimentError
from sirius_dspy.experiment.lms import lm_from
from sirius_dspy.experiment.methods import Bench, Entry, offered
from sirius_dspy.experiment.observer import Observer, Started
from sirius_dspy.experiment.recipe import Recipe
from sirius_dspy.experiment.results import Comparison, Results, Row
from sirius_dspy.experiment.run import Experiment
from sirius_dspy.experiment.task import Task
from sirius_dspy.experiment.tracking import MLflowRuns

__all__ = [
    "Bench",
    "Cell",
    "Comparison",
    "Entry",
    "Experiment",
    "ExperimentError",
    "MLflowRuns",
    "Observer",
    "Outcome",
    "Recipe",
    "Results",
    "Row",
    "Started",
    "Task",
    "lm_from",
    "offered",
]
