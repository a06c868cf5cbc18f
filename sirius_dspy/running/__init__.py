"""Run a program: record it, replay it, score it, and retry what failed in an LM."""
