"""Speculative decoding: a target asked about several tokens at once, how they are accepted, how well a draft does."""
