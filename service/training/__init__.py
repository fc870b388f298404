"""Training: one loop for one device or many, inside a Ray Train worker."""
