"""From a shard set to batches: which rows (`order`), their bytes (`reader`) and their pixels (`tfdata`)."""
