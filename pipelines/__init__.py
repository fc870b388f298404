"""The data plane: sources, shards, and the batches that training reads. See README.md in this folder."""
