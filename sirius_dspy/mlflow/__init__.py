"""Tracks compiles in MLflow, and registers, loads and serves their programs with its model registry.

    tracker      hooks of a compile, which never delay it
    outbox       queued writes, kept while the server is down
    recorder     events as a tree of runs
    lineage      versions of agents and programs as models, linked to their sources
    values       parameters, tags and metrics of the runs
    store        one experiment, and writes that can be repeated
    sample       which runs become traces
    traces       runs and repairs as spans
    results      library and report as artifacts
    curves       losses from the threads of jobs
    names        names and values that MLflow accepts
    patience     short waits
    registry     registers a program and its agents
    files        what a registered model consists of
    serving      answers requests with a registered program

Importing this package does not import mlflow.
"""

from sirius_dspy.checkpoint import load_agent
from sirius_dspy.mlflow.registry import Registered, register
from sirius_dspy.mlflow.tracker import MLflowTracker

__all__ = ["MLflowTracker", "Registered", "load_agent", "register"]
