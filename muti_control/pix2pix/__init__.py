"""Pix2Pix, the baseline that needs no diffusion: a skull picture and biometrics to a face in one step."""
