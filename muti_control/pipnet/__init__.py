"""PIPNet (arXiv 2003.03771): landmarks of faces, and of the face that belongs to a skull."""
