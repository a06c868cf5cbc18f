"""Plan and calculate: a planner writes an expression, code evaluates it, and a reporter answers.

    legs      "How many legs do 3 dogs and 2 ducks have?"                 the planner must know the legs of each animal
    prices    "A pen costs 3 coins and a cup costs 7 coins. ..."          the prices are in the story

The calculator is exact and free. A single agent can have it, too: with `calculator=True`, it writes an expression, and
the value is its answer. So this task shows what a tool is worth rather than what a team is worth.

Splits never share a question, in whatever order it lists things, for any seeds, sizes and settings; see
`sirius_dspy.demo.generated`.
"""

from programs.plan_and_calculate.calculator import ExpressionError, calculate
from programs.plan_and_calculate.task import PlanTask, PlanTeam, legs, prices

__all__ = ["ExpressionError", "PlanTask", "PlanTeam", "calculate", "legs", "prices"]
