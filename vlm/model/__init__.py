"""The model of equations (1) to (5). Knows nothing of training."""
