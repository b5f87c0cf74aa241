"""`python -m benchmarks [steps | gptq | kquants | ptq | submit | start | streams]`: a table of docs/performance.md."""

import argparse
from pathlib import Path

from benchmarks.gptq_update import compare_gptq_updates
from benchmarks.kquants import compare_kquants
from benchmarks.ptq import compare_quantizers
from benchmarks.start import measure_start
from benchmarks.steps import compare_steps
from benchmarks.streams import measure_streams
from benchmarks.submit import compare_submit

ROOT = Path(__file__).resolve().parents[1]
OF_THE_SERVICE = {"submit": compare_submit, "start": measure_start, "streams": measure_streams}


def main() -> None:
    """Run the benchmark that was named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "which", nargs="?", choices=("steps", "gptq", "kquants", "ptq", *OF_THE_SERVICE), default="steps"
    )
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "stdlib-5m")
    parser.add_argument("--only", nargs="+", default=(), help="ptq: formats or quantizers, such as nvfp4 ours")
    parser.add_argument("--again", action="store_true", help="ptq: measure anew what an earlier run has kept")
    parser.add_argument("--print", action="store_true", help="ptq: print what is kept and run nothing")
    given = parser.parse_args()
    if given.which == "steps":
        compare_steps(given.model)
    elif given.which == "gptq":
        compare_gptq_updates()
    elif given.which == "kquants":
        compare_kquants()
    elif given.which in OF_THE_SERVICE:
        OF_THE_SERVICE[given.which]()
    else:
        compare_quantizers(given.model, given.only, again=given.again, run=not given.print)


if __name__ == "__main__":
    main()
