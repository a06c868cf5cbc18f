"""Turns runs into training rows, and training rows into new weights."""
