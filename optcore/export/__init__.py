"""The registry of exports: a closed union. One more is one file here and one `| Name` below."""

from typing import Annotated

from pydantic import Field

from optcore.export.awq import Awq
from optcore.export.base import Export
from optcore.export.compact import Compact
from optcore.export.compressed_tensors import CompressedTensors
from optcore.export.dense import Dense
from optcore.export.fp8_block import Fp8Block
from optcore.export.gguf import Gguf
from optcore.export.gptq import GptqFormat
from optcore.export.modelopt import Modelopt
from optcore.export.onnx import Onnx

AnyExport = Annotated[
    CompressedTensors | Fp8Block | Modelopt | Awq | GptqFormat | Gguf | Onnx | Dense | Compact,
    Field(discriminator="format"),
]

__all__ = [
    "AnyExport",
    "Awq",
    "Compact",
    "CompressedTensors",
    "Dense",
    "Export",
    "Fp8Block",
    "Gguf",
    "GptqFormat",
    "Modelopt",
    "Onnx",
]
