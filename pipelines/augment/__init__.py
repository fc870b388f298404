"""Augmentation in two halves: parameters are drawn on the host, applied on the device."""
