"""Know the differences between base models: their files, and how their weights are quantised."""
