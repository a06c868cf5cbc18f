"""A fine-tuning server with OpenAI's API: `sirius-dspy serve`. Only that command imports it, and it needs an extra."""
