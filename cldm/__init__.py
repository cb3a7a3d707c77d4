"""The control network, controlled sampling and guidance."""
