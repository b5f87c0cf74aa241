"""Techniques that change what a checkpoint is made of, streamed layer by layer."""
