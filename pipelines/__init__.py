"""The data plane: sources, shards, and the batches that training reads."""
