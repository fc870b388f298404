"""Searching for a better preset: many short runs on a Ray cluster, of which the weak ones are stopped early."""
