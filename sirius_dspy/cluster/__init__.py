"""Fine-tuning on a Ray cluster."""
