"""MLflow: what a compile did, and its programs in the model registry, ready to be loaded and served.

    tracker      hooks of a compile; nothing here holds it up
    outbox       writes on their way, kept while the server is down
    recorder     events as a tree of runs
    lineage      versions of agents and programs as models, with what they were made from
    values       parameters, tags and metrics of the runs
    store        one experiment, and writes that can be repeated
    sample       which runs become traces
    traces       runs and repairs as spans
    results      library and report as artifacts
    curves       losses from the threads of jobs
    names        what MLflow takes as names and values
    patience     short waits
    registry     registers a program and its agents
    files        what a registered model consists of
    serving      answers requests with a registered program

Importing this does not import mlflow.
"""

from sirius_dspy.checkpoint import load_agent
from sirius_dspy.mlflow.registry import Registered, register
from sirius_dspy.mlflow.tracker import MLflowTracker

__all__ = ["MLflowTracker", "Registered", "load_agent", "register"]
