"""Run directories on object stores: written locally and mirrored, owned by one process at a time."""
