"""The model of equations (1) to (5), independent of training."""
