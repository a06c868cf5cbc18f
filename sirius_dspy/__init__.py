"""Self-improving multi-agent DSPy programs."""
