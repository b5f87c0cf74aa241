"""Checkpoints made of others without training: merged, cut or factored."""
