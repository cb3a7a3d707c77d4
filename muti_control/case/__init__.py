"""One case: is its skull fit for the model, what does the calibration of the weights say."""
