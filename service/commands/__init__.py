"""The commands of `glassbox`, one module per command."""
