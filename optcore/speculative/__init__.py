"""Speculative decoding: a target that is asked about several drafted tokens at once, the exact rules by which they are
accepted, and how well a draft does by them."""
