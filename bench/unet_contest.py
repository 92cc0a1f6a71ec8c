"""A contest of the U-Net: one precision, our processes against PyTorch's ways.

Every side, at every number of threads, is a process of its own that sleeps while another works, and
bursts of them take turns. All of PyTorch's ways take part in the first rounds, and the fastest in those
that follow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import Peak, say
from unet_rival import CHUNKS, KINDS
from unet_samples import Key, Samples, Tiles
from unet_work import BATCH
from worker import Worker

PAUSE = 0.05  # seconds until the threads of the side before are asleep
STEP, SAMPLE, HALF, PEAK = "training step", "sampling", "half-bridge", "peak"
OURS, COMPILED = "dsb", "compiled"
AVX2 = "float32 with AVX2"
AVX2_OURS = {"DSB_ISA": "x86-64-v3"}
AVX2_RIVAL = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# PyTorch's memory from the heap, in large pages, and kept: worth a tenth of a step to it or more.
HEAP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:glibc.malloc.hugetlb=1"


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    batch: int = BATCH
    screening: int = 2  # rounds in which all of PyTorch's ways take part
    rounds: int = 7
    sample_rounds: int = 5
    avx2_rounds: int = 4
    single: int = 3  # rounds that one thread takes part in
    norm_rounds: int = 5
    repeats: int = 3  # of a call in the table of calls
    compile_limit: float = 300.0  # seconds


QUICK = Effort(8, 1, 2, 1, 1, 1, 1, 1)


@dataclass(frozen=True)
class Place:
    """Where all processes work."""

    effort: Effort
    folder: Path
    threads: int
    single: bool  # whether one thread is timed too

    @property
    def problem(self) -> Path:
        return self.folder / "problem.npz"

    def ours(self, precision: str, threads: int, label: str = "") -> Worker:
        extra = AVX2_OURS if label == AVX2 else {}
        batch = str(self.effort.batch)
        return Worker("unet_ours", threads, self.problem, precision, batch, environment=extra)

    def rival(self, precision: str, label: str = "", heap: bool = True) -> Worker:
        cache = self.folder / ("inductor-avx2" if label == AVX2 else "inductor")
        extra = {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
        extra |= {"GLIBC_TUNABLES": HEAP} if heap else {}
        extra |= AVX2_RIVAL if label == AVX2 else {}
        return Worker("unet_rival", self.threads, self.problem, precision, environment=extra)


def rival_precision(label: str) -> str:
    return "bf16" if label == "bf16" else "float32"


def compile_ways(place: Place, labels: Sequence[str], notes: list[str]) -> dict[str, Worker]:
    """Step and forward pass for all labels at once: a compiler is a process of one thread."""
    until = time.monotonic() + place.effort.compile_limit
    workers = {label: place.rival(rival_precision(label), label) for label in labels}
    n = place.effort.batch
    tasks: list[tuple[str, dict[str, int]]] = [("step", {"steps": 2, "batch": n})]
    tasks.append(("sample", {"chunk": CHUNKS[-1], "n": n}))
    for name, given in tasks:
        for worker in workers.values():
            worker.begin(name, kind=COMPILED, **given)
        for label, worker in list(workers.items()):
            try:
                worker.finish(max(0.1, until - time.monotonic()))
            except (RuntimeError, TimeoutError) as error:
                worker.abandon()
                del workers[label]
                notes.append(f"torch.compile, {label}, is left out: {error}.")
    for worker in workers.values():
        worker.call("rest")
    return workers


class Contest:
    """`precisions` on our side, against PyTorch in the first of them."""

    def __init__(
        self,
        place: Place,
        label: str,
        precisions: Sequence[str],
        peak: Peak,
        tiles: Tiles,
        compiled: Worker | None,
    ) -> None:
        self._place, self._effort, self._label = place, place.effort, label
        self._peak, self._tiles = peak, tiles
        single = place.single and label != AVX2
        self._ours = {
            (OURS if p == precisions[0] else f"{OURS} {p}", n): place.ours(p, n, label)
            for p in precisions
            for n in ([place.threads, 1] if single else [place.threads])
        }
        eager = place.rival(rival_precision(label), label)
        self._rivals = {kind: eager for kind in KINDS if kind != COMPILED}
        if compiled is not None:
            self._rivals[COMPILED] = compiled
        ways = [(kind, chunk) for kind in self._rivals for chunk in CHUNKS]
        self._samplers = {
            f"{kind}, {chunk} at a time": (kind, chunk)
            for kind, chunk in ways
            if kind != COMPILED or chunk == CHUNKS[-1]  # the one that was compiled
        }
        self.unit = "fma" if label != "bf16" else "amx" if tiles.there else "bf16"
        self.samples = Samples()
        self.settings: dict[str, Any] = {}

    # ---- bursts ----

    def task(self, task: str) -> str:
        return f"{task}, {self._label}"

    def _burst(
        self,
        task: str,
        side: str,
        threads: int,
        worker: Worker,
        name: str,
        given: Mapping[str, Any],
    ) -> None:
        """One call, between two looks at the tiles where it may use them."""
        key = Key(self.task(task), side, threads)
        looks = (
            self._tiles if self._label == "bf16" or side.startswith(f"{OURS} ") else Tiles(False)
        )
        before = looks.look(self._peak, threads)
        seconds = worker.call(name, **given)
        self.samples.add(key, seconds, before, looks.look(self._peak, threads))
        time.sleep(PAUSE)

    def _us(self, threads: int) -> Iterator[tuple[str, Worker]]:
        return ((side, worker) for (side, n), worker in self._ours.items() if n == threads)

    def _fastest(self, task: str) -> str:
        return self.samples.fastest(self.task(task), self._place.threads)

    def warm(self) -> float:
        """First touch of everything; by how much of the largest the outputs of the sides differ
        (before anyone has trained)."""
        theirs = self._rivals[KINDS[0]].call("outputs", n=4)
        ours = self._ours[OURS, self._place.threads]
        self.settings = ours.call("settings")
        far = max(abs(a - b) for a, b in zip(ours.call("outputs", n=4), theirs, strict=True))
        for worker in self._ours.values():
            worker.call("step", steps=1)
        for kind, worker in self._rivals.items():
            worker.call("step", kind=kind, steps=1, batch=self._effort.batch)
        return far / max(map(abs, theirs))

    def steps(self, i: int) -> None:
        threads, batch = self._place.threads, self._effort.batch
        speed = self._peak.measure(threads, 60, self.unit)
        if speed is not None:
            self.samples.add(Key(self.task(PEAK), OURS + " probe", threads), speed)
        for n in {threads, 1} if i < self._effort.single else {threads}:
            for side, worker in self._us(n):
                self._burst(STEP, side, n, worker, "step", {"steps": 1})
        best = self._fastest(STEP) if i >= self._effort.screening else None
        for kind, worker in self._rivals.items():
            if best in (None, kind):
                given = {"kind": kind, "steps": 1, "batch": batch}
                self._burst(STEP, kind, threads, worker, "step", given)

    def sampling(self, i: int) -> None:
        threads = self._place.threads
        for side, worker in self._us(threads):
            self._burst(SAMPLE, side, threads, worker, "sample", {})
        best = self._fastest(SAMPLE) if i >= self._effort.screening else None
        for name, (kind, chunk) in self._samplers.items():
            if best in (None, name):
                given = {"kind": kind, "chunk": chunk, "n": self._effort.batch}
                self._burst(SAMPLE, name, threads, self._rivals[kind], "sample", given)

    def half_bridge(self) -> None:
        """PyTorch's: the fastest way of training, and of simulating in the same process."""
        threads, kind = self._place.threads, self._fastest(STEP)
        for side, worker in self._us(threads):
            self._burst(HALF, side, threads, worker, "half_bridge", {})
        here = [n for n, (k, _) in self._samplers.items() if self._rivals[k] is self._rivals[kind]]
        task = self.task(SAMPLE)
        name = min(here, key=lambda n: self.samples.median(task, n, threads) or 0.0)
        sampler, chunk = self._samplers[name]
        given = {"kind": kind, "sampler": sampler, "chunk": chunk, "batch": self._effort.batch}
        side = f"{kind}; simulation {name}"
        self._burst(HALF, side, threads, self._rivals[kind], "half_bridge", given)

    def hold(self) -> None:
        slow = self._label == AVX2
        rounds = self._effort.avx2_rounds if slow else self._effort.rounds
        for i in range(rounds):
            say(f"{self._label}: steps, round {i + 1} of {rounds}")
            self.steps(i)
        if not slow:
            for i in range(self._effort.sample_rounds):
                say(f"{self._label}: sampling, round {i + 1} of {self._effort.sample_rounds}")
                self.sampling(i)
            say(f"{self._label}: half-bridge")
            self.half_bridge()

    def close(self) -> None:
        for worker in {id(w): w for w in (*self._ours.values(), *self._rivals.values())}.values():
            worker.close()
