"""A day's steps, shard by shard, without Dagster: extract, learn, derive."""
