"""Speculative decoding: a target, the exact rules by which it accepts what was drafted, and how well a draft does."""
