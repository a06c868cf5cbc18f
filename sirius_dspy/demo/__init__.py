"""The demo of the command line: two agents on a small generated task, and their evaluation."""
