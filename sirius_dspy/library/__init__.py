"""The experience library: every run of a program, good or bad, on disk."""
