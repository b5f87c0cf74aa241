"""Techniques that change what a model is made of."""
