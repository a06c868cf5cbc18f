"""The demo of the command line: two agents on a small generated task, and what it takes to measure them."""
