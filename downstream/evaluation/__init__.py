"""What a model is worth: scores, how sure they are, and language-model loss on held-out text."""
