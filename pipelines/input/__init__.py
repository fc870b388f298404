"""A shard set becomes batches: which rows, their bytes, their pixels."""
