"""Plans a training before it is started: its duration, its bottleneck, and the resources that it takes."""
