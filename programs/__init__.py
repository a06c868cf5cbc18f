"""Example programs, one file each: `build()`, `examples(split, ...)`, `majority_baseline(examples)` and `metric`."""
