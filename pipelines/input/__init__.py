"""Reads batches from a shard set: the order of rows (`order`), their bytes (`reader`), pixels (`tfdata`)."""
