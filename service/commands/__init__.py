"""What each command of `glassbox` does, one file per command."""
