"""What TensorBoard shows of a stage: tags, charts, pages of text, settings and results."""
