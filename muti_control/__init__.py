"""Training: the stages, what they share, and the composed configuration."""
