"""Draws pictures and plots from arrays; nothing here runs a model."""
