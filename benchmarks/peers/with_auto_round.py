"""auto-round: a preset scheme and how many steps of signed gradients tune it (`W4A16 50`; 0 is plain rounding)."""

from typing import Any

from benchmarks.peers.job import Job

BATCH_windows = 8


def quantize(job: Job) -> Any:
    """The model with its rounded weights put back, and activations wrapped where the scheme has them."""
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    scheme, _, steps = job.recipe.partition(" ")
    preset, asymmetric, _ = scheme.partition("-asym")
    windows_ST = job.windows("calibration")
    model = job.load()
    with job.timed():
        tuner = AutoRound(
            model,
            AutoTokenizer.from_pretrained(job.model),
            scheme=preset,
            **({"sym": False} if asymmetric else {}),
            iters=int(steps),
            dataset=list(windows_ST.split(BATCH_windows)),
            seqlen=windows_ST.shape[1],
            nsamples=len(windows_ST),
            batch_size=BATCH_windows,
            device_map="cpu",
        )
        tuned, _ = tuner.quantize()
    return tuned.float().eval()
