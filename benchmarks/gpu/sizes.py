"""How large the measured tensors are."""

from typing import NamedTuple


class Sizes(NamedTuple):
    """Those of models that people run; a test takes small ones."""

    matrices: tuple[tuple[int, int], ...] = ((8192, 8192), (4096, 14336))
    """[N, K]: a large square, and the widest projection of an 8B model."""
    experts: tuple[int, int, int] = (128, 768, 2048)
    """[E, N, K]: the experts of a layer of Qwen3-30B-A3B."""
    head: tuple[int, int, int] = (8192, 4096, 128256)
    """Rows, hidden size, vocabulary."""
    tokens: int = 16384
    """That a Gram matrix takes in at a time."""
    head_width: int = 128
    """Channels of an attention head."""

    @property
    def all_matrices(self) -> tuple[tuple[int, int], ...]:
        """The experts too, one below the other: what treats values one by one sees no difference."""
        experts, rows, columns = self.experts
        return (*self.matrices, (experts * rows, columns))


LARGE = Sizes()
TINY = Sizes(((64, 128), (32, 256)), (2, 48, 128), (24, 16, 300), 64, 32)
