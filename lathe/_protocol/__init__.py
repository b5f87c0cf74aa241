"""The REST protocol without I/O: what to send for each operation, and how to read the answer.

The sync and the async client differ only in how they send a `Call`; everything that decides is here.
"""
