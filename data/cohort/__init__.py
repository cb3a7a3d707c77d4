"""A synthetic cohort of paired skull and face pictures, made from a CC0 head model and a procedural skull."""
