"""Which of many faces may belong to a skull, or the other way round: ``python -m muti_control.search``."""
