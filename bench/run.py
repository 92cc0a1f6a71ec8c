"""dsb against PyTorch, side by side in one run.

    python bench/run.py [--what vectors unet metrics sinkhorn] [--quick] [--threads 1 2] [--output FOLDER]

`vectors` times the two-dimensional network and the package, `unet` the network for images, `metrics` the
distances between samples, `sinkhorn` entropic transport. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import metrics
import sinkhorn
import unet
import vectors
from machine import slug
from report import Report, three

RESULTS = Path(__file__).resolve().parent / "results"


def finish(report: Report, folder: Path, suffix: str) -> None:
    paths = report.write(folder, slug(report.machine) + suffix)
    print(report.markdown())
    print("written:", *paths)
    for key, value in report.goals.items():
        print(f"{key:24s} {three(value)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--what",
        nargs="+",
        choices=["vectors", "unet", "metrics", "sinkhorn"],
        default=["vectors"],
        metavar="PART",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test: figures mean nothing")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--no-package", action="store_true", help="no import, wheel, demonstration")
    parser.add_argument("--no-compile", action="store_true", help="unet: no torch.compile")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: bench/results")
    args = parser.parse_args()
    suffix = "-quick" if args.quick else ""
    if "vectors" in args.what:
        parts = ["engine"] if args.no_package else ["engine", "package"]
        effort = vectors.QUICK if args.quick else vectors.Effort()
        finish(vectors.measure(effort, args.threads, parts), args.output, suffix)
    if "unet" in args.what:
        effort = unet.QUICK if args.quick else unet.Effort()
        report = unet.measure(effort, args.threads, compiled=not args.no_compile)
        finish(report, args.output, "-unet" + suffix)
    if "metrics" in args.what:
        effort = metrics.QUICK if args.quick else metrics.Effort()
        finish(metrics.measure(effort, args.threads), args.output, "-metrics" + suffix)
    if "sinkhorn" in args.what:
        effort = sinkhorn.QUICK if args.quick else sinkhorn.Effort()
        finish(sinkhorn.measure(effort, args.threads), args.output, "-sinkhorn" + suffix)


if __name__ == "__main__":
    main()
