"""`python -m sirius_dspy.cli`, where the command is not on the path."""

from sirius_dspy.cli import app

app(prog_name="sirius-dspy")
