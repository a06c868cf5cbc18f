"""The experience library keeps every run of a program, good or bad, on disk."""
