"""Hyperparameter search: many short runs on a Ray cluster; ASHA stops weak ones early."""
