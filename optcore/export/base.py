"""What an export is: a target format on disk and its writer."""

from typing import TYPE_CHECKING, ClassVar

from optcore.frozen import Frozen

if TYPE_CHECKING:
    from optcore.run import Run


class Export(Frozen):
    """A format that engines load."""

    title: ClassVar[str]
    schemes: ClassVar[frozenset[str]]
    """Names of the schemes it can hold."""
    kv_caches: ClassVar[frozenset[str]] = frozenset()
    """Names of the KV cache formats it can hold."""
    engines: ClassVar[tuple[str, ...]]
    """Engines that load it."""

    def write(self, run: "Run") -> None:
        """Read `run.checkpoint`, write the target's files to `run.out` and prove them by decoding them again."""
        raise NotImplementedError
