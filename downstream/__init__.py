"""Fine-tuning and evaluation of what the engine hands over, and the report."""
