"""From a head CT to a skull and a face picture in the cohort's frame: see README.md in this folder."""
