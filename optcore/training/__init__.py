"""Training a student from a teacher: losses, data, checkpoints and the loop around them."""
