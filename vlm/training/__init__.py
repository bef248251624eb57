"""Train the adapter: the training loop, checkpoints of the trainable weights, and the run's log."""
