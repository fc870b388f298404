"""Reports: what a run learned, as a static page that opens from disk."""
