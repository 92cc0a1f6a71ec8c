"""The figures of a run, beside what they are meant to reach, as JSON and Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Goal(NamedTuple):
    what: str
    unit: str  # "x", "%", or of a quantity of which less is better ("% off", "GB")
    at_least: float
    aim: float


GOALS = {
    "step": Goal("(a) training step against PyTorch's fastest, 1 thread", "x", 2.5, 4),
    "peak": Goal("share of the measured FMA peak in (a), 1 thread", "%", 60, 80),
    "half_bridge": Goal("(b) half-bridge, same simulated work, 2 threads", "x", 4, 7),
    "released": Goal("(b) half-bridge against the released way, 2 threads", "x", 12, 25),
    "sample": Goal("(c) sampling, 1 thread", "x", 2.5, 5),
    "scaling_step": Goal("two threads over one, (a)", "x", 1.7, 1.9),
    "scaling_half_bridge": Goal("two threads over one, (b)", "x", 1.7, 1.9),
    "scaling_sample": Goal("two threads over one, (c)", "x", 1.7, 1.9),
    "import": Goal("`import dsb` on top of `import numpy`", "ms", 40, 10),
    "wheel": Goal("wheel", "MB", 3, 1),
    "demo": Goal("`python -m dsb.demo`", "s", 120, 40),
    "unet_float32": Goal(
        "U-Net, training step in float32 against PyTorch's fastest", "x", 1.3, 1.5
    ),
    "unet_float32_peak": Goal("share of the measured FMA peak in it", "%", 75, 88),
    "unet_avx2": Goal("the same with AVX2 on both sides", "x", 1.2, 1.5),
    "unet_bf16": Goal("training step in bfloat16 (vdpbf16ps) against PyTorch's", "x", 2, 3),
    "unet_bf16_tiles": Goal("training step in bfloat16 (AMX) against PyTorch's", "x", 3, 5),
    "unet_bf16x3": Goal("training step in bf16x3 (AMX) against PyTorch's float32", "x", 2.5, 4),
    "unet_sample_float32": Goal("sampling in float32 against PyTorch's fastest", "x", 1.3, 1.5),
    "unet_sample_bf16": Goal("sampling in bfloat16 against PyTorch's fastest", "x", 3, 5),
    "unet_norm": Goal("GroupNorm and SiLU in bfloat16, PyTorch's better layout", "x", 2, 2.5),
    "unet_memory_float32": Goal("peak memory of training at batch 128, float32", "GB", 1.2, 0.7),
    "unet_memory_bf16": Goal("peak memory of training at batch 128, bfloat16", "GB", 1.2, 0.7),
    "unet_prediction": Goal("prediction of that memory, the worse of the two", "% off", 5, 1),
    "unet_scaling_float32": Goal("two threads over one, float32", "x", 1.7, 1.95),
    "sinkhorn_pot": Goal("Sinkhorn, an iteration against POT, the worst of three s2", "x", 25, 25),
    "sinkhorn_others": Goal("the same against OTT and GeomLoss where installed", "x", 1, 2),
    "sinkhorn_floor": Goal("Sinkhorn, an iteration over all pairs", "times the floor", 2, 1.5),
    "sinkhorn_memory": Goal("memory of Sinkhorn beyond the data", "MB", 20, 5),
    "unet_scaling_bf16": Goal("two threads over one, bfloat16", "x", 1.7, 1.95),
    "metrics_sliced_2": Goal(
        "sliced W of 10,000 points against POT and PyTorch, d = 2", "x", 5, 10
    ),
    "metrics_sliced_50": Goal("the same, d = 50", "x", 5, 10),
    "metrics_energy_2": Goal("energy distance against PyTorch's fastest, d = 2", "x", 5, 10),
    "metrics_energy_50": Goal("the same, d = 50", "x", 5, 10),
    "metrics_mmd_2": Goal("MMD against PyTorch's fastest, d = 2", "x", 5, 10),
    "metrics_mmd_50": Goal("the same, d = 50", "x", 5, 10),
}


def rate(goal: Goal, measured: float) -> str:
    more_is_better = goal.unit in ("x", "%")

    def reached(bound: float) -> bool:
        return measured >= bound if more_is_better else measured <= bound

    if reached(goal.aim):
        return "aim"
    return "at least" if reached(goal.at_least) else "falls short"


@dataclass
class Series:
    """Repeated measurements of one thing."""

    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.values.append(value)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.values) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high


@dataclass
class Figure:
    """One row of the table of times: a side, at a number of threads."""

    task: str
    side: str
    threads: int
    unit: str
    series: Series

    def row(self) -> list[str]:
        low, high = (f"{three(v)}" for v in self.series.quartiles)
        return [
            self.task,
            self.side,
            str(self.threads),
            f"{three(self.series.median)} {self.unit}",
            f"{low} to {high}",
            str(len(self.series.values)),
        ]


@dataclass
class Table:
    """A table of its own, under its own heading."""

    title: str
    head: list[str]
    rows: list[list[str]]


@dataclass
class Report:
    machine: dict[str, str]
    settings: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    goals: dict[str, float] = field(default_factory=dict)
    losses: list[dict[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def json(self) -> str:
        rated = {
            key: GOALS[key]._asdict() | {"measured": value, "rating": rate(GOALS[key], value)}
            for key, value in self.goals.items()
        }
        figures = [
            asdict(f) | {"median": f.series.median, "series": f.series.values} for f in self.figures
        ]
        return json.dumps(asdict(self) | {"figures": figures, "goals": rated}, indent=1) + "\n"

    def markdown(self) -> str:
        goals = [
            [g.what, f"{three(v)} {g.unit}", f"{g.at_least:g}", f"{g.aim:g}", rate(g, v)]
            for g, v in ((GOALS[key], self.goals[key]) for key in GOALS if key in self.goals)
        ]
        losses = [[*map(str, row.values())] for row in self.losses]
        parts = [
            "# Benchmarks",
            table(["", ""], self.machine.items()),
            "## Against what is to be reached",
            table(["what", "measured", "at least", "aim", "reached"], goals),
            "## Times",
            table(
                ["task", "side", "threads", "median", "quartiles", "repeats"],
                [f.row() for f in self.figures],
            ),
        ]
        if losses:
            parts += ["## Losses", table(list(self.losses[0]), losses)]
        for extra in self.tables:
            parts += [f"## {extra.title}", table(extra.head, extra.rows)]
        parts += ["## Notes", "\n".join(f"* {note}" for note in self.notes)]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path, name: str) -> list[Path]:
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{name}.json", folder / f"{name}.md"]
        for path, text in zip(paths, (self.json(), self.markdown()), strict=True):
            path.write_text(text)
        return paths


def three(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{float(f'{value:.3g}'):,.10g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
