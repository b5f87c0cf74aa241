"""Bringing the model and its calibration text to this machine, pinned and checked, without torch."""
