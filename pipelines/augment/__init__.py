"""Augmentations, one per file: drawn on the host, applied on the device. `base` is their interface."""
