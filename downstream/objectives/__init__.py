"""What fine-tuning optimises: objectives over labelled rows."""
