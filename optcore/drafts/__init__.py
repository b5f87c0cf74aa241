"""Drafts: small models that guess the next tokens of a large one, and the layouts in which engines load them."""
