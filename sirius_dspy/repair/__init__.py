"""Repair of failed runs: critique, regenerate, rephrase, replay."""
