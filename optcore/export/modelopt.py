"""The Hugging Face checkpoint of NVIDIA's Model Optimizer, which TensorRT-LLM, vLLM and SGLang load."""

from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.export.base import Export
from optcore.export.sizes import check_modelopt
from optcore.schemes import Scheme

if TYPE_CHECKING:
    from optcore.run import Run


class Modelopt(Export):
    """Model Optimizer's layout, with the same facts in `config.json` and `hf_quant_config.json`.

    Its scales multiply where those of compressed-tensors divide. Smoothing is folded already, so `pre_quant_scale`
    holds ones, where TensorRT-LLM asks for it. W4A8_AWQ kernels round the decoded INT4 weights to FP8 once more, which
    is not simulated. What TensorRT-LLM's loader asserts is checked in the written folder.
    """

    title: ClassVar[str] = "Model Optimizer"
    schemes: ClassVar[frozenset[str]] = frozenset(
        {"fp8", "fp8_dynamic", "fp8_block", "nvfp4", "nvfp4_w4a16", "int4", "int4_fp8_static"}
    )
    sized_schemes: ClassVar[frozenset[str]] = frozenset({"int4", "int4_fp8_static", "fp8_block"})
    kv_caches: ClassVar[frozenset[str]] = frozenset({"fp8", "nvfp4", "nvfp4_affine"})

    format: Literal["modelopt"] = "modelopt"

    def check_linear(self, name: str, scheme: Scheme, shape_NK: tuple[int, int], place: str) -> None:
        """Refuse INT4 in an odd number of outputs, and partial blocks of FP8."""
        check_modelopt(name, scheme, shape_NK, place)

    def write(self, run: "Run") -> None:
        """Write the tensors and both descriptions, decode every weight, and ask what TensorRT-LLM's loader asks."""
        from optcore.errors import ExportMismatch
        from optcore.export.layout_writer import write_layout
        from optcore.export.modelopt_check import check_modelopt
        from optcore.export.modelopt_writer import ModeloptLayout
        from optcore.streaming.quantized import QuantizedCheckpoint

        write_layout(run, ModeloptLayout(QuantizedCheckpoint(run.checkpoint)))
        if found := check_modelopt(run.out):
            raise ExportMismatch(f"TensorRT-LLM would not load what was written ({len(found)} faults): {found[0]}")
