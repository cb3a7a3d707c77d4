"""Latent diffusion core: schedule, networks, text encoder, checkpoint files."""
