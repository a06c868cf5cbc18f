"""Builds programs as graphs of agents, and draws who reads whom."""
