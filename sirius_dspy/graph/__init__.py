"""Programs as graphs of agents, and who reads whom."""
