"""Which fields are seen at once, wherever they occur: those that most recipes say. All others are one click away."""

PROMINENT = frozenset(
    {
        *("id", "revision", "path", "dataset", "samples", "sequence_length"),
        *("scheme", "kv_cache", "effective_bits", "candidates", "rounding"),
        *("method", "ratio", "width", "depth", "experts", "keep", "bits", "ties", "others", "window", "pattern"),
        *("steps", "batch", "learning_rate", "teacher", "scope", "adapters", "signs", "risk", "tokens", "top_k"),
        *("format", "engine", "plain", "gate", "metric", "max", "min", "on_fail"),
        *("repo_id", "private", "credential", "device", "gpu_kind", "gpu_memory_gib"),
        *("max_run_seconds", "max_queue_seconds", "prompt_tokens", "new_tokens", "batches"),
    }
)
