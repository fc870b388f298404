"""From arrays to pictures and plots; nothing here runs a model."""
