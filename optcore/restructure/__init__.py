"""Models of another structure, written layer by layer."""
