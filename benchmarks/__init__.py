"""One file a measured claim: ``python -m benchmarks list``; results/ holds what was seen."""
