"""What techniques share that train a model in high precision."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from optcore.techniques.adapters import Lora
from optcore.techniques.training import Training


class DenseTraining(Training):
    """Training of a checkpoint that is not quantized, into one with the same tensors in the same types."""

    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"dense"})

    scope: Literal["full", "lora"] = "full"
    """What moves. `full`: every parameter. `lora`: adapters beside the linear layers, merged into them at the end."""
    lora: Lora = Lora()
    """Settings of `scope: lora`."""

    how_to_keep: ClassVar[dict[str, str]] = {
        "sparse": "leave out `lora.dropout`",
        "factored": "use `scope: full`, which trains the factors",
        "palettized": "use `scope: full`, which trains the tables",
        "shared": "use `scope: full`, which trains the shared numbers",
        "tied": "use `scope: full`, which trains tied layers as one",
    }

    @property
    def keeps(self) -> frozenset[str]:
        """Factors and shared numbers, which train themselves; zeros, which adapters do not fill: part of the weight,
        with no input of their own to drop from."""
        if self.scope == "full":
            return frozenset({"sparse", "factored", "palettized", "shared", "tied"})
        return frozenset() if self.lora.dropout else frozenset({"sparse"})

    @model_validator(mode="after")
    def _settings_are_used(self) -> Self:
        if self.scope != "lora" and self.lora != Lora():
            raise ValueError("`lora` does nothing without `scope: lora`")
        return self
