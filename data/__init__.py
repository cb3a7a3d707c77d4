"""Datasets and their preparation: biometrics, manifests, pictures, and the synthetic cohort."""
