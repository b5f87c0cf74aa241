"""A goal in the place of a chain: the candidates that may meet it, the race between them, and the front they leave."""
