"""What makes two compiles the same."""
