"""Builds, verifies and opens shard sets, which are described by a manifest."""
