"""Cohorts in Parquet shards with their images inside, for data that outgrow one machine."""
