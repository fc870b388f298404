"""Hyperparameter search: many short runs on a Ray cluster, of which ASHA stops the weak ones early."""
