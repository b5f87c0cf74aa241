"""Engines that serve a result, run here to see that they load it, and how they do."""
