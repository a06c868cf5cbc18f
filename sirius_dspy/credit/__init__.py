"""How much each step of a run mattered, found by running the program again from that step on."""
