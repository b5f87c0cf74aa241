"""How exactly a stage computes on a GPU: never in TF32, and with `LATHE_DETERMINISTIC=1` the same bits every time.

TF32 rounds the factors of float32 products to 10 bits, too few for a Cholesky factor. Operators that have no
deterministic form end a stage that asked for one.
"""

from collections.abc import Mapping

from optcore.errors import RecipeError

SWITCH = "LATHE_DETERMINISTIC"
_FORCE_TF32 = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


def is_deterministic(environment: Mapping[str, str]) -> bool:
    """Whether the same bits are asked for. Raises `RecipeError` for a switch of no known position."""
    asked = environment.get(SWITCH, "0")
    if asked not in ("0", "1"):
        raise RecipeError(f"{SWITCH} is {asked!r}", remedy="set it to 1, or leave it out", field="/")
    return asked == "1"


def stage_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment that a stage must start with: CUDA's libraries look at theirs once."""
    kept = {name: value for name, value in environment.items() if name not in _FORCE_TF32}
    return {**kept, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if is_deterministic(environment) else kept


def settle_numerics(*, deterministic: bool) -> None:
    """Tell torch; before it computes anything."""
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if deterministic:
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.utils.deterministic.fill_uninitialized_memory = False  # it hides faults, and costs a write of everything
        torch.use_deterministic_algorithms(True)
