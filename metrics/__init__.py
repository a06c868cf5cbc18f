"""Metrics of the example programs, one file each: `metric(example, prediction, trace=None)` gives 0.0 or 1.0."""
