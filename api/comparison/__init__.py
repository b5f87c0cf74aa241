"""Jobs side by side: what was asked, what came out, and which of them no other one beats."""

from api.comparison.compare import MAX_JOBS, MIN_JOBS, compare

__all__ = ["MAX_JOBS", "MIN_JOBS", "compare"]
