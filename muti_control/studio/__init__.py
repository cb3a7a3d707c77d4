"""The studio: a page on this machine where a skull goes in, and faces, their spread and a report come out."""
