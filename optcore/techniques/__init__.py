"""The registry of techniques: a closed union. One more is one file here and one `| Name` below."""

from typing import Annotated

from pydantic import Field

from optcore.techniques.base import Gate, Technique
from optcore.techniques.ptq import Ptq

AnyTechnique = Annotated[Ptq, Field(discriminator="technique")]

__all__ = ["AnyTechnique", "Gate", "Ptq", "Technique"]
