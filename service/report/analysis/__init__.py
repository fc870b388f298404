"""Computes arrays and figures from a model and images; nothing here draws or writes HTML."""
