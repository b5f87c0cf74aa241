"""The registry of techniques: a closed union. One more is one file here and one `| Name` below."""

from typing import Annotated

from pydantic import Field

from optcore.techniques.auto_quantize import AutoQuantize
from optcore.techniques.base import Gate, Technique
from optcore.techniques.ptq import Ptq

AnyTechnique = Annotated[Ptq | AutoQuantize, Field(discriminator="technique")]

__all__ = ["AnyTechnique", "AutoQuantize", "Gate", "Ptq", "Technique"]
