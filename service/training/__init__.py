"""Training: one loop for one device or many, in a Ray Train worker or in the current process."""
