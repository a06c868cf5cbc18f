"""Hops: a question that two or three facts of a text answer together.

    two_hops        "In which city does the boss of Anna live?"   works for, lives in
    two_hops_things "In which city is the red kite?"              belongs to, lives in
    three_hops      "In which city does the boss of the owner of the red kite live?"

A finder copies the first fact, a follower the next one, as often as needed, and an answerer reads the city. Each fact
ends with the name with which the next one begins. The facts are made up, so that no model knows them.

Splits never share a question about the same facts, in whatever order, for any seeds, sizes and settings; see
`sirius_dspy.demo.generated`.
"""

from programs.hops.task import HopsTask, HopsTeam, three_hops, two_hops, two_hops_things

__all__ = ["HopsTask", "HopsTeam", "three_hops", "two_hops", "two_hops_things"]
