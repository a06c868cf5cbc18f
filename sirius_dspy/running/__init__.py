"""Runs of a program: recorded, replayed, scored, tried again, and kept apart when they do not end."""
