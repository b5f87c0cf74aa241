"""The registry of exports: a closed union. One more is one file here and one `| Name` below."""

from typing import Annotated

from pydantic import Field

from optcore.export.base import Export
from optcore.export.compressed_tensors import CompressedTensors
from optcore.export.fp8_block import Fp8Block

AnyExport = Annotated[CompressedTensors | Fp8Block, Field(discriminator="format")]

__all__ = ["AnyExport", "CompressedTensors", "Export", "Fp8Block"]
