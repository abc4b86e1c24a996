"""Fine-tuning and evaluation of the models the engine hands over, up to the report."""
