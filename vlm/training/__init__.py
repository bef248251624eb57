"""Training: a subclass of the Transformers `Trainer`, checkpoints of what trains, and the run's log."""
