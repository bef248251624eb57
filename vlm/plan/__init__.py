"""The plan on paper: what a job costs on a machine that is not at hand. Knows the config and nothing of the model."""
