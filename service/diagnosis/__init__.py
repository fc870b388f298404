"""Diagnosis of a run from its learning curves and predictions: findings as text, and label issues."""
