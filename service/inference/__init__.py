"""Inference with any Keras image classifier: models, datasets, jobs and output tables."""
