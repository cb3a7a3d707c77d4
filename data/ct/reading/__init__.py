"""Reading a head CT: from any file or folder to Hounsfield units and the place of every voxel."""
