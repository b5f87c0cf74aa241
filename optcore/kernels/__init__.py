"""Operators that decide the time on a GPU: each a plain torch definition and a Triton kernel that gives the same."""
