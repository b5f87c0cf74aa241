"""`python -m benchmarks`: every benchmark, each printing the table that `docs/performance.md` holds."""

import argparse
from pathlib import Path

from benchmarks.formats import compare_formats

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "stdlib-5m")
    compare_formats(parser.parse_args().model)
