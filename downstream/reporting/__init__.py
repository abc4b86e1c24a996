"""From saved results to a report: facts gathered, put into words, drawn, and rendered."""
