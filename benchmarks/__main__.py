"""`python -m benchmarks WHICH`: a table of docs/performance.md, by default that of `steps`.

Each is imported when it is asked for: on a machine with a GPU there is not what those of the service need.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {
    "gptq": ("gptq_update", "compare_gptq_updates"),
    "kquants": ("kquants", "compare_kquants"),
    "submit": ("submit", "compare_submit"),
    "start": ("start", "measure_start"),
    "streams": ("streams", "measure_streams"),
    "followed": ("followed", "measure_followed"),
    "pages": ("pages", "measure_pages"),
}
"""Those that are told nothing: their modules and functions."""


def main() -> int:
    """Run the benchmark that was named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("which", nargs="?", choices=("steps", "ptq", "gpu", *PLAIN), default="steps")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "stdlib-5m", help="gpu: whose tokenizer")
    parser.add_argument("--only", nargs="+", default=(), help="ptq: formats or quantizers, such as nvfp4 ours")
    parser.add_argument("--again", action="store_true", help="ptq: measure anew what an earlier run has kept")
    parser.add_argument("--print", action="store_true", help="ptq: print what is kept and run nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu.json", help="gpu: the JSON to write")
    parser.add_argument("--layers", type=int, default=4, help="gpu: of the random model")
    given = parser.parse_args()
    if given.which == "steps":
        from benchmarks.steps import compare_steps

        compare_steps(given.model)
    elif given.which == "ptq":
        from benchmarks.ptq import compare_quantizers

        compare_quantizers(given.model, given.only, again=given.again, run=not given.print)
    elif given.which == "gpu":
        from benchmarks.gpu.command import measure_gpu

        return measure_gpu(given.out, given.model, given.layers)
    else:
        module, function = PLAIN[given.which]
        getattr(import_module(f"benchmarks.{module}"), function)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
