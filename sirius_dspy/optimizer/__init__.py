"""The `SiriuS` teleprompter and its loop."""
