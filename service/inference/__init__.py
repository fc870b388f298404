"""Any Keras image classifier applied to any images: models, datasets, jobs and output tables."""
