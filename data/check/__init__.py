"""A doctor for data sets: ``python -m data.check``."""
