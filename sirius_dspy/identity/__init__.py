"""Decides whether two compiles are the same."""
