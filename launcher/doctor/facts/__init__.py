"""What one host can tell of itself; runs there, and judges nothing."""
