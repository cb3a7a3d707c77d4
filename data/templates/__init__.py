"""The shipped head template (``head.npz``) and the script that builds it. See README.md for its provenance."""
