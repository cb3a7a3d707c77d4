"""From a head CT to a skull and a face picture in the cohort's frame: see docs/your-own-cts.md."""
