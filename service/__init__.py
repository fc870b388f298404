"""Training and looking: models, the loop, run directories, reports, the command line."""
