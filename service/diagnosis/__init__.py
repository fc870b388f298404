"""What learning curves and predictions say about a run: findings in words, and label issues."""
