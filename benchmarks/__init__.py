"""Measurements: what the README and the model card report, each by one command."""
