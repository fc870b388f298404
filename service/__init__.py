"""Training, inference and reports: models, the training loop, run directories, and the command line."""
