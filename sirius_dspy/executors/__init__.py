"""Executors: run the program in several processes of this machine, or on a Ray cluster."""

from sirius_dspy.executors.cluster import RayExecutor
from sirius_dspy.executors.processes import ProcessExecutor
from sirius_dspy.running.executor import Executor, Shipped, Workers

__all__ = ["Executor", "ProcessExecutor", "RayExecutor", "Shipped", "Workers"]
