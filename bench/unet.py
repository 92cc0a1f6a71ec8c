"""Images: the U-Net's training step, its sampling, its memory, and where a step spends its time."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import unet_ours
from machine import Peak, describe, say
from report import Figure, Report, Series
from unet_contest import (
    AVX2,
    COMPILED,
    HALF,
    OURS,
    PEAK,
    QUICK,
    SAMPLE,
    STEP,
    Contest,
    Effort,
    Place,
    compile_ways,
)
from unet_ops import Timer, Walk, arguments, breakdown
from unet_rival import KINDS
from unet_samples import FAST, Key, Samples, Tiles
from unet_work import (
    BATCH,
    CHANNELS,
    COLOURS,
    OPERATIONS,
    PARAMETERS,
    PRECISIONS,
    REFRESH,
    SIZE,
    STEPS,
)

from dsb import UNet, _core

__all__ = ["QUICK", "Effort", "measure"]

NORM = "GroupNorm and SiLU"
WORTH_COMPILING = 1.15  # times the fastest way in float32: then AVX2 is compiled too
NORM_REPEATS = 10
REST = 0.3  # seconds, in which the threads of the side before stop waiting for more work


class Bench:
    def __init__(self, place: Place, report: Report, compiled: bool) -> None:
        self._place, self._report = place, report
        self._isa, self._ops = _core.isa(), UNet.mnist().build((COLOURS, *SIZE))
        self._peak = Peak(self._isa, place.folder)
        self._tiles = Tiles(self._isa.endswith("amx-bf16"))
        self._precisions = [p for p in PRECISIONS if p in _core.precisions()]
        self._contests: dict[str, Contest] = {}
        self._to_compile = compiled
        self._compiled: dict[str, Any] = {}

    def _note(self, text: str) -> None:
        self._report.notes.append(text)

    # ---- contests ----

    def compile(self, labels: Sequence[str]) -> None:
        if self._to_compile:
            say(f"PyTorch compiles: {', '.join(labels)}")
            start = time.monotonic()
            self._compiled |= compile_ways(self._place, labels, self._report.notes)
            say(f"compiled in {time.monotonic() - start:.0f} s")

    def contest(self, label: str, precisions: Sequence[str], peak: Peak) -> None:
        say(f"{label}: warming up")
        compiled = self._compiled.pop(label, None)
        c = Contest(self._place, label, precisions, peak, self._tiles, compiled)
        far = c.warm()
        self._note(f"{label}: the outputs of both sides differ by {far:.1e} of the largest.")
        c.hold()
        c.close()
        self._contests[label] = c

    def contests(self) -> None:
        labels = [p for p in ("float32", "bf16") if p in self._precisions]
        self.compile(labels)
        self.contest("float32", [p for p in self._precisions if p != "bf16"], self._peak)
        if "bf16" in labels:
            self.contest("bf16", ["bf16"], self._peak)
        if "x86-64-v3" in _core.isas():
            if self._slower_when_compiled() < WORTH_COMPILING:
                self.compile([AVX2])
            self.contest(AVX2, ["float32"], Peak("x86-64-v3", self._place.folder))

    def _slower_when_compiled(self) -> float:
        samples, threads = self._contests["float32"].samples, self._place.threads
        task = self._contests["float32"].task(STEP)
        compiled = samples.median(task, COMPILED, threads)
        best = samples.median(task, samples.fastest(task, threads), threads)
        return compiled / best if compiled and best else float("inf")

    # ---- normalisation ----

    def norms(self) -> None:
        """GroupNorm and SiLU forward over a batch of 28 x 28 x 64, ours by the functions of the table."""
        place, samples = self._place, Samples()
        sizes = {"h": SIZE[0], "w": SIZE[1], "c": CHANNELS, "groups": 32, "silu": 1}
        ways = [(layout, c) for layout in KINDS[:2] for c in (False, True)[: 1 + self._to_compile]]
        ours, rival = Timer(place.threads, BATCH, 8, NORM_REPEATS), place.rival("float32")
        for i in range(place.effort.norm_rounds + 1):  # the first one compiles and is forgotten
            for half in (False, True):
                task = f"{NORM}, {'bf16' if half else 'float32'}"
                time.sleep(REST)
                seconds = ours.seconds("norm_forward", arguments(**sizes, bf16=int(half)))
                if i:
                    samples.add(Key(task, OURS, place.threads), seconds)
                for layout, compiled in ways:
                    given = {"layout": layout, "compiled": compiled, "half": half}
                    time.sleep(REST)
                    seconds = rival.call("norm", **given, repeats=NORM_REPEATS)
                    side = layout + (", compiled" if compiled else "")
                    if i:
                        samples.add(Key(task, side, place.threads), seconds)
        ours.close()
        rival.close()
        self._figures(samples)
        ratio = samples.ratios(f"{NORM}, bf16", OURS, f"{NORM}, bf16", place.threads)
        if (
            ratio.get("", float("nan")) > 0
        ):  # not NaN, which stands for a function that is not there
            self._report.goals["unet_norm"] = ratio[""]

    # ---- memory ----

    def memory(self) -> None:
        """Of processes that do nothing but train, one for each side and precision."""
        place, worst = self._place, 0.0
        for label in (p for p in ("float32", "bf16") if p in self._precisions):
            worker = place.ours(label, place.threads)
            told = worker.call("memory")
            worker.close()
            taken = told["peak"] - told["before"]
            worst = max(worst, 100 * abs(told["told"] / taken - 1))
            self._report.goals[f"unet_memory_{label}"] = 1e-9 * told["peak"]
            samples = self._contests[label].samples
            task = self._contests[label].task(STEP)
            eager = {k: samples.median(task, k, place.threads) or 0.0 for k in KINDS[:2]}
            kind = min(eager, key=lambda k: eager[k])
            worker = place.rival(label, heap=False)
            theirs = worker.call("memory", kind=kind, batch=place.effort.batch)["peak"]
            worker.close()
            parts = {"dsb": told["peak"], "foretold": told["told"], "taken": taken, kind: theirs}
            for side, value in parts.items():
                series = Series([1e-9 * value])
                figure = Figure(f"memory, {label}", side, place.threads, "GB", series)
                self._report.figures.append(figure)
        self._report.goals["unet_prediction"] = worst

    # ---- calls ----

    def calls(self) -> None:
        threads = self._place.threads
        for label in self._precisions:
            side, c = OURS, self._contests.get(label)
            if c is None:  # a side of the contest in float32
                side, c = f"{OURS} {label}", self._contests["float32"]
            walk = Walk(self._ops, label, self._tiles.there, c.settings["lanes"])
            if (walk.parameters, walk.operations) != (PARAMETERS, OPERATIONS):
                self._note(f"{walk.parameters:,} parameters, {walk.operations:,} operations?")
            step = c.samples.median(c.task(STEP), side, threads) or 0.0
            batch = self._place.effort.batch
            microbatch = math.gcd(batch, c.settings["microbatch"])
            timer = Timer(threads, batch, microbatch, self._place.effort.repeats)
            title = f"Calls of a step, {label}, {threads} threads, microbatch {microbatch}"
            peak = self._speed(c) if side == OURS else None
            self._report.tables.append(breakdown(walk, timer, step, peak, title))
            timer.close()

    # ---- results ----

    def _speed(self, c: Contest) -> float | None:
        """The most that the unit of this contest did in a probe."""
        key = Key(c.task(PEAK), OURS + " probe", self._place.threads)
        series = c.samples.series().get((key, ""))
        return series.most if series else None

    def _figures(self, samples: Samples) -> None:
        for (key, state), series in samples.series().items():
            task = key.task + (f", {state}" if state else "")
            factor, unit = (1e-9, "GFLOP/s") if key.task.startswith(PEAK) else (1e3, "ms")
            scaled = Series([factor * value for value in series.values])
            figure = Figure(task, key.side, key.threads, unit, scaled)
            self._report.figures.append(figure)

    def _goal(self, name: str, ratios: dict[str, float]) -> None:
        """In the state that most machines are in; the others are noted."""
        if ratios:
            state = next(iter(ratios))
            self._report.goals[name] = ratios[state]
            others = [f"{s or 'all'}: {r:.2f} x" for s, r in ratios.items()]
            if state:
                self._note(f"{name}: {'; '.join(others)}.")

    def _scaling(self, name: str, c: Contest) -> None:
        ones = c.samples.median(c.task(STEP), OURS, 1)
        twos = c.samples.median(c.task(STEP), OURS, 2)
        if ones and twos:
            self._report.goals[name] = ones / twos

    def _half_bridge(self, c: Contest) -> None:
        for state, ratio in c.samples.ratios(
            c.task(HALF), OURS, c.task(HALF), self._place.threads
        ).items():
            self._note(
                f"{c.task(HALF)}{state and ', ' + state}: {ratio:.2f} times PyTorch's speed."
            )

    def _shares(self, label: str, c: Contest) -> None:
        step = c.samples.median(c.task(STEP), OURS, self._place.threads)
        speed, part = self._speed(c), self._place.effort.batch / BATCH
        if step and speed:
            walk = Walk(self._ops, "bf16" if label == "bf16" else "float32", self._tiles.there)
            share, nominal = (
                100 * part * n / step / speed for n in (walk.computed, walk.operations)
            )
            self._note(
                f"{c.task(STEP)}: {share:.1f} % of the peak of `{c.unit}`, {self._place.threads} "
                f"thread(s), for the {walk.computed * 1e-9 * part:.1f} GFLOP that are computed; "
                f"{nominal:.1f} % for those of the ops as they are defined."
            )
            if label == "float32":
                self._report.goals["unet_float32_peak"] = share

    def results(self) -> None:
        threads = self._place.threads
        for label, c in self._contests.items():
            self._figures(c.samples)
            task = c.task(STEP)
            ratios = c.samples.ratios(task, OURS, task, threads)
            tiles = "_tiles" if label == "bf16" and self._tiles.there else ""
            self._goal("unet_avx2" if label == AVX2 else f"unet_{label}{tiles}", ratios)
            self._shares(label, c)
            if label != AVX2:
                sampling = c.samples.ratios(c.task(SAMPLE), OURS, c.task(SAMPLE), threads)
                self._goal(f"unet_sample_{label}", sampling)
                self._scaling(f"unet_scaling_{label}", c)
                self._half_bridge(c)
        if "bf16x3" in self._precisions:
            c = self._contests["float32"]
            task, side = c.task(STEP), f"{OURS} bf16x3"
            self._goal("unet_bf16x3", c.samples.ratios(task, side, task, threads))


def notes(effort: Effort) -> list[str]:
    return [
        f"The network is improved-diffusion's U-Net for {SIZE[0]} x {SIZE[1]} images, {CHANNELS} channels, "
        f"multipliers 1, 2, 2, {PARAMETERS:,} parameters. A training step is forward, backward, clip, Adam "
        f"and moving average over {effort.batch} images: {OPERATIONS * 1e-9 * effort.batch / BATCH:.1f} "
        "GFLOP, counted from the list of ops on unpadded shapes. Ours takes its pairs from a window of a "
        "first half-bridge, PyTorch's has its batch at hand. Shares of the peak count what is computed "
        "(convolutions of up-sampled images take 4/9 of the products forward, and 1/4 backward where vectors "
        "compute them) in the median time, against the best of the probe's repeats.",
        f"Sampling is one step of {effort.batch} images, forward pass and noise; a half-bridge is "
        f"{REFRESH} steps and the simulation of their pairs, {STEPS} steps a path.",
        "PyTorch: fused Adam, clipping and moving average over all tensors at once; autocast for bfloat16; "
        "memory from the heap, in large pages, that is never given back, which makes its steps shorter by a "
        "tenth or more. Inductor lays images out channels last by itself, so there is one compiled way. For "
        "AVX2 it takes part where it comes close to eager with the machine's own instructions.",
        "Memory: peak of a process that trains for two steps, PyTorch's without the heap settings and in "
        "the eager way that is the faster; `taken` is ours without what the process had before it made the "
        "bridge, `foretold` what the bridge says before it is trained.",
        "Calls are timed one by one by bench/ops.c and weighted with how often a step has them; what an op "
        "gets handed lies in a cache, what is kept for the backward pass does not.",
        f"Figures of {FAST!r} and its like are bursts between two probes of the tiles that agreed.",
    ]


def measure(effort: Effort, threads: Sequence[int], compiled: bool) -> Report:
    settings = {"threads": list(threads), "parts": ["unet"], "quick": effort == QUICK}
    report = Report(describe(_core.isa()), settings, notes=notes(effort))
    with tempfile.TemporaryDirectory() as name:
        most = max(threads)
        place = Place(effort, Path(name), most, 1 in threads and most > 1)
        unet_ours.make_problem().save(place.problem)
        bench = Bench(place, report, compiled and effort != QUICK)
        bench.contests()
        bench.results()
        for part in (bench.norms, bench.memory, bench.calls):
            say(part.__name__)
            part()
    return report
