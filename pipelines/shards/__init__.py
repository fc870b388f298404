"""A source becomes a shard set: planned, built, described by a manifest."""
