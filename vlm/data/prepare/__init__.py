"""Check a table and its images before training, and pack cohorts into shards."""
