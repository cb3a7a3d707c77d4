"""Models as folders in the layout of the diffusers library, both ways. The library itself is not needed."""
