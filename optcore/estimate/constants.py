"""What a unit of work costs on a core that nothing was learned of yet, in one table.

CPU: set by hand to stages of the model that ships (quantization, pruning, training, evaluation, GGUF), in one and two
threads of an x86 server with torch 2.13, each in its own process as the engine runs them; what larger models take is
extrapolated. GPU: peak rates by their makers' data sheets, and 40 % of them for products; no stage on a GPU was
measured, so these are guesses that learning corrects.
"""

from typing import NamedTuple

MB = 10**6


class UnitCosts(NamedTuple):
    """Seconds of one unit of each kind of work (`Work`)."""

    flops: float
    """A floating-point operation of a matrix product."""
    values: float
    """A value that an elementwise operation reads and writes."""
    columns: float
    """A column that is rounded in order, on top of its values and products."""
    calls: float
    """A layer that is called once, on top of what it computes."""
    disk: float
    """A byte that is read from or written to the disk."""
    network: float
    """A byte that is downloaded."""


CPU_CORE = UnitCosts(flops=1.2e-11, values=3.0e-10, columns=4e-5, calls=3.0e-4, disk=1.5e-9, network=2e-8)
"""Of one core where work is spread over cores (flops and values), else of the machine."""
GPU = UnitCosts(flops=2.5e-15, values=2.0e-12, columns=2e-5, calls=3.0e-4, disk=7e-10, network=2e-8)
"""Of one H100-class GPU; others by their share of its rate."""

GPU_RATES = {"B200": 2.3, "B100": 1.8, "H200": 1.0, "H100": 1.0, "H800": 1.0, "GH200": 1.0, "A100": 0.32, "A800": 0.32}
GPU_RATES |= {"L40": 0.36, "L4": 0.12, "A10": 0.12, "4090": 0.33, "5090": 0.42, "3090": 0.14, "T4": 0.06, "V100": 0.12}
"""Of dense bfloat16 products, over an H100's 989 TFLOP/s."""
GPU_other = 0.2

CORES_used = 32
"""More threads than these do not make the products of one process faster."""

START_seconds = {"torch": 1.6, "transformers": 3.45, "generating": 4.9, "none": 0.5}
"""A fresh process that imports these, by the heaviest."""
BASE_bytes = {"torch": 255 * MB, "transformers": 465 * MB, "none": 46 * MB}
"""Memory of a process that has imported these."""
GPU_BASE_bytes = 600 * MB
"""CUDA's context and its libraries, on each GPU."""
GPU_HOST_bytes = 2500 * MB
"""What torch with CUDA holds of the host's memory, beyond one without."""
ROUNDING_bytes = 80 * MB
"""What error feedback holds beyond its matrices."""
WORKING_bytes = 40 * MB
"""What libraries hold as soon as layers are computed: buffers of products, threads, the allocator's fragments."""

HEADER_bytes = 105
"""Of a tensor in a safetensors file."""
GGUF_HEAD_bytes = 4000
GGUF_TOKEN_bytes = 40
"""Of a token of the vocabulary, with its merge."""
ONNX_GRAPH_bytes = 40_000
"""Of a layer's nodes."""

PRIOR_spread = 2.5
"""Before anything was learned nine of ten stages are expected within this factor."""
KINDS: dict[str, float] = {}
"""What a kind of stage takes beyond its formula."""
