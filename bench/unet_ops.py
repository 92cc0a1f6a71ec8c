"""Where a step of the U-Net spends its time: every call of the core's table that a net's ops stand
for, timed one by one by the program ops.c, with how often each occurs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from machine import ROOT, compiler
from report import Table, three
from unet_work import BATCH, PRECISIONS

# Shares of the products of a convolution of up-sampled images that the core computes, in sums of weights
# or of gradients: by vectors, by tiles.
FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT = (
    "conv_forward",
    "conv_backward_input",
    "conv_backward_weight",
)
REPEATED = {
    FORWARD: ((4, 9), (4, 9)),
    BACKWARD_INPUT: ((1, 4), (4, 9)),
    BACKWARD_WEIGHT: ((1, 4), (1, 1)),
}
SHOWN = 0.002  # of a step: what takes less is only summed up
Op = Mapping[str, Any]


class Call(NamedTuple):
    function: str  # of ops.c
    request: str  # its arguments
    operations: int  # of a batch, as the ops are defined
    computed: int  # as the core computes them


def arguments(**given: int) -> str:
    return " ".join(f"{key}={value}" for key, value in given.items())


def image_arguments(shape: tuple[int, ...]) -> dict[str, int]:
    c, h, w = shape
    return {"h": h, "w": w, "c": c}


class Walk:
    """The calls of a training step, from a net's list of ops."""

    def __init__(self, ops: Sequence[Op], precision: str, tiles: bool, lanes: int = 8) -> None:
        self._tiles = tiles and precision != "float32"
        self._precision = PRECISIONS.index(precision)
        self._type = {"bf16": 1} if precision == "bf16" else {}
        self._by_name = {op["name"]: op for op in ops}
        self._readers = Counter(name for op in ops for name in op.get("inputs", ()))
        self._read_by: dict[str, list[Op]] = {}
        for op in ops:
            for name in op.get("inputs", ()):
                self._read_by.setdefault(name, []).append(op)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.calls: Counter[Call] = Counter()
        parameters = 0
        for op in ops:
            shapes = [self._shapes[name] for name in op.get("inputs", ())]
            handler = getattr(self, f"op_{op['op']}", None)
            if handler is None:
                raise ValueError(f"no timing of {op['op']}")
            self._shapes[op["name"]] = handler(op, shapes)
            parameters += self._parameters(op, shapes)
        self.parameters = parameters
        self._add("reduce_lanes", arguments(c=parameters, lanes=lanes))
        self._add("adam_step", arguments(c=parameters, lanes=5))

    @property
    def operations(self) -> int:
        return sum(call.operations * count for call, count in self.calls.items())

    @property
    def computed(self) -> int:
        return sum(call.computed * count for call, count in self.calls.items())

    def _add(
        self, function: str, request: str, operations: int = 0, computed: int | None = None
    ) -> None:
        done = operations if computed is None else computed
        self.calls[Call(function, request, operations, done)] += 1

    def _image_call(self, function: str, shape: tuple[int, ...], **more: int) -> None:
        self._add(function, arguments(**image_arguments(shape), **self._type, **more))

    def _parameters(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> int:
        if op["op"] == "conv":
            return int((shapes[0][0] * op["kernel"] ** 2 + 1) * op["width"])
        if op["op"] == "linear":
            return int((shapes[0][0] + 1) * op["width"])
        return 2 * shapes[0][0] if op["op"] == "group_norm" else 0

    def _computed(self, op: Op, operations: int, function: str) -> int:
        if not op.get("up") or op["kernel"] == 1:
            return operations
        over, of = REPEATED[function][self._tiles]
        return operations * over // of

    def _only_convolutions_read(self, name: str) -> bool:
        return all(op["op"] == "conv" for op in self._read_by.get(name, ()))

    def _added_at_once(self, op: Op) -> bool:
        """Whether the convolution adds what an op `add` adds to it."""
        readers = self._read_by.get(op["name"], [])
        return len(readers) == 1 and readers[0]["op"] == "add"

    # ---- one method for each kind of op, which returns the shape of its value ----

    def op_input(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return (op.get("width", 1),)

    def op_image(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        h, w = op["size"]
        shape = (shapes[0][0] // (h * w), h, w)
        self._image_call("row_to_image", shape)
        return shape

    def op_flatten(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        (c, h, w) = shapes[0]
        self._image_call("image_to_row", shapes[0])
        self._image_call("row_to_image", shapes[0])
        return (c * h * w,)

    def op_embed(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return (op["width"],)

    def op_silu(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return shapes[0]

    op_dropout = op_silu

    def op_concat(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def op_linear(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        n_in, n_out = shapes[0][0], op["width"]
        request, operations = arguments(c=n_in, c_out=n_out), 2 * BATCH * n_in * n_out
        first = self._by_name[op["inputs"][0]]["op"] in ("embed", "input")
        self._add("linear_forward", request, operations)
        self._add("linear_backward", request, operations * (1 if first else 2))
        return (n_out,)

    def op_conv(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        (c, h, w), kernel, c_out = shapes[0], op["kernel"], op["width"]
        stride, up = op.get("stride", 1), 2 if op.get("up") else 1
        out = [(n * up - 1) // stride + 1 for n in (h, w)]
        before = self._by_name[op["inputs"][0]]
        shape = {"h": h, "w": w, "c": c, "c_out": c_out, "kernel": kernel, "stride": stride}
        shape |= {"up": up, "precision": self._precision} | self._type
        normed = before["op"] == "group_norm" and self._only_convolutions_read(before["name"])
        read = {"affine": 1, "silu": int(before.get("silu", False))} if normed else {}
        added = {"residual": 1} if self._added_at_once(op) else {}
        operations = 2 * BATCH * out[0] * out[1] * c * c_out * kernel * kernel
        requests = {FORWARD: read | added, BACKWARD_INPUT: {}, BACKWARD_WEIGHT: read}
        for function, more in requests.items():
            if function != BACKWARD_INPUT or before["op"] != "image":
                computed = self._computed(op, operations, function)
                self._add(function, arguments(**shape, **more), operations, computed)
        self._add("conv_pack", arguments(**shape))
        return (c_out, *out)

    def op_group_norm(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        more = {"groups": op["groups"], "silu": int(op.get("silu", False))}
        more |= {"scale": 1} if len(shapes) == 2 else {}
        fused = self._only_convolutions_read(op["name"])
        self._image_call("norm_statistics" if fused else "norm_forward", shapes[0], **more)
        self._image_call("norm_backward", shapes[0], **more)
        return shapes[0]

    def op_attention(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        c, (_, h, w) = shapes[0][0] // 3, shapes[0]
        request = arguments(**image_arguments((c, h, w)), heads=op["heads"], **self._type)
        operations = 4 * BATCH * c * (h * w) ** 2
        self._add("attention_forward", request, operations)
        self._add("attention_backward", request, 2 * operations)
        return (c, h, w)

    def op_add(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        sources = [self._by_name[name] for name in op["inputs"]]
        fused = any(source["op"] == "conv" and self._added_at_once(source) for source in sources)
        if len(shapes[0]) == 3 and not fused:
            self._image_call("add", shapes[0])
        return shapes[0]


class Timer:
    """The program ops.c, linked with the core's CPU functions as a wheel has them."""

    def __init__(self, threads: int, rows: int, microbatch: int, repeats: int) -> None:
        counts = (threads, rows, microbatch, repeats)
        self._process = subprocess.Popen(
            [str(build()), *map(str, counts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, function: str, request: str) -> float:
        """For the rows; NaN where the core has no such function."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{function} {request}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def build() -> Path:
    sys.path.insert(0, str(ROOT / "csrc"))
    import recipe

    cc, output = compiler(), ROOT / "build" / "bench" / "ops"
    units = [unit for unit in recipe.units(cc, python=False) if unit.source.parts[1] != "bridge"]
    units += [recipe.Unit(Path("bench", name), None, []) for name in ("ops.c", "ops_passes.c")]
    recipe.link(recipe.compile_units(units, cc, "bench", ["-DNDEBUG"]), cc, output)
    return output


def shown(request: str) -> str:
    """A request for readers: "28x28, 64 to 128, 3x3, normalised"."""
    given = {key: int(value) for key, value in (word.split("=") for word in request.split())}
    if "lanes" in given:
        return f"{given['c']:,} parameters, {given['lanes']} planes"
    words = [f"{given['h']}x{given['w']}"] if "h" in given else []
    words.append(f"{given['c']} to {given['c_out']}" if "c_out" in given else str(given["c"]))
    if "kernel" in given:
        words.append(f"{given['kernel']}x{given['kernel']}")
    words += ["stride 2"] if given.get("stride") == 2 else []
    words += ["up-sampled"] if given.get("up") == 2 else []
    words += ["normalised"] if given.get("affine") else []
    words += ["scale and shift"] if given.get("scale") else []
    words += ["added"] if given.get("residual") else []
    return ", ".join(words)


def breakdown(walk: Walk, timer: Timer, step: float, peak: float | None, title: str) -> Table:
    """The calls by the time that they take of a step of `step` seconds."""
    found = [
        (count * timer.seconds(call.function, call.request), call, count)
        for call, count in walk.calls.items()
    ]
    known = sorted((row for row in found if row[0] == row[0]), key=lambda row: -row[0])
    rows = [cells(*row, step, peak) for row in known if row[0] > SHOWN * step]
    total = sum(seconds for seconds, _, _ in known)
    operations = walk.computed
    rows.append(summary("all of these", total, operations, step, peak))
    rows.append(summary("the rest", step - total, 0, step, peak))
    rows.append(summary("measured step", step, operations, step, peak))
    head = ["function", "arguments", "calls", "ms", "% of step", "GFLOP/s", "% of peak"]
    return Table(title, head, kinds(known, step, peak) + rows)


def speed(seconds: float, operations: int, peak: float | None) -> list[str]:
    rate = operations / seconds if seconds > 0 else 0.0
    share = three(100 * rate / peak) if peak else ""
    return [three(1e-9 * rate), share] if rate > 0 else ["", ""]


def cells(seconds: float, call: Call, count: int, step: float, peak: float | None) -> list[str]:
    times = [three(1e3 * seconds), three(100 * seconds / step)]
    fast = speed(seconds, call.computed * count, peak)
    return [call.function, shown(call.request), str(count), *times, *fast]


def summary(
    what: str, seconds: float, operations: int, step: float, peak: float | None
) -> list[str]:
    times = [three(1e3 * seconds), three(100 * seconds / step)]
    return [f"**{what}**", "", "", *times, *speed(seconds, operations, peak)]


def kinds(
    known: Sequence[tuple[float, Call, int]], step: float, peak: float | None
) -> list[list[str]]:
    """A row for each function, over all its shapes."""
    names = dict.fromkeys(call.function for _, call, _ in known)
    rows = []
    for name in names:
        of = [row for row in known if row[1].function == name]
        seconds = sum(row[0] for row in of)
        operations = sum(row[1].computed * row[2] for row in of)
        rows.append((seconds, summary(name, seconds, operations, step, peak)))
    return [row for _, row in sorted(rows, key=lambda row: -row[0])]
