"""Lower bounds of scores by the matrix unit of x86 processors (`amx`), from bytes: 32 rows by 32 centroids at a time.

A product of 16-bit integers takes four products of bytes. A lower bound of a score needs a single one, of the integers
rounded to multiples of a larger unit. By the Cauchy-Schwarz inequality, rounding changes a product by at most the norms
of the rounding errors times those of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numpy.typing import NDArray

from hkm_dask.compute.jit import kernel
from hkm_dask.search.amx import (
    CHUNK,
    PAIR_BYTES,
    SHAPES,
    SIDE,
    TILE_BYTES,
    aligned,
    begin_tiles,
    call,
    end_tiles,
    number,
    spread,
    tile_number,
)  # fmt: skip

intrinsic: Any = extending.intrinsic

#: Rows, and centroids, whose bounds are written at once.
BOUND_ROWS = 2 * SIDE

_i8, _i32, _i64, _f32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_bytes, _ints, _floats = _i8.as_pointer(), ir.VectorType(_i32, SIDE), ir.VectorType(_f32, SIDE)


@intrinsic
def _bound_block(
    typing_context: Any, lines: Any, start: Any, tiles: Any, panel: Any, n_chunks: Any, factors: Any,
    norms: Any, slacks: Any, constants: Any, slopes: Any, scores: Any, first: Any, column: Any,
) -> Any:  # fmt: skip
    """Write the bounds of 32 rows (lines of `scores` from `first` on) against the 32 centroids of a panel."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        def array(n: int) -> Any:
            return context.make_array(signature.args[n])(context, b, arguments[n])

        start, panel, n_chunks, first, column = (arguments[n] for n in (1, 3, 4, 11, 12))
        n_bytes = b.mul(n_chunks, number(PAIR_BYTES))
        rows, centroids = b.gep(array(0).data, [start]), b.gep(array(2).data, [b.mul(panel, n_bytes)])
        with b.goto_entry_block():
            sums = b.alloca(_ints, 4 * SIDE)
            sums.align = 64
        row_bytes = number(CHUNK)
        before, loop, after = b.block, b.append_basic_block("chunks"), b.append_basic_block("bounds")
        for n in range(4):
            call(b, "tilezero", tile_number(n))
        b.branch(loop)
        b.position_at_end(loop)
        at = b.phi(_i64)
        at.add_incoming(number(0), before)
        for n in range(2):
            place = b.add(at, number(n * TILE_BYTES))
            call(b, "tileloadd64", tile_number(4 + n), b.gep(rows, [place]), row_bytes)
            call(b, "tileloadd64", tile_number(6 + n), b.gep(centroids, [place]), row_bytes)
        for n in range(4):
            call(b, "tdpbssd", tile_number(n), tile_number(4 + n // 2), tile_number(6 + n % 2))
        following = b.add(at, number(PAIR_BYTES))
        at.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("<", following, n_bytes), loop, after)

        b.position_at_end(after)
        for n in range(4):
            call(b, "tilestored64", tile_number(n), b.bitcast(b.gep(sums, [number(n * SIDE)]), _bytes), row_bytes)
        fma = b.module.declare_intrinsic(f"llvm.fma.v{SIDE}f32", (), ir.FunctionType(_floats, [_floats] * 3))
        stride = b.extract_value(array(10).shape, 1)
        for half in range(2):
            position = b.add(b.mul(panel, number(BOUND_ROWS)), number(half * SIDE))
            constant, slope = (
                b.load(b.bitcast(b.gep(array(n).data, [position]), _floats.as_pointer()), align=4) for n in (8, 9)
            )
            for r in range(BOUND_ROWS):
                total = b.load(b.gep(sums, [number((r // SIDE * 2 + half) * SIDE + r % SIDE)]), align=64)
                factor, norm, slack = (spread(b, b.load(b.gep(array(n).data, [number(r)])), _floats) for n in (5, 6, 7))
                score = b.call(fma, [b.sitofp(total, _floats), factor, constant])
                bound = b.fsub(b.call(fma, [norm, slope, score]), slack)
                place = b.add(b.mul(b.add(first, number(r)), stride), b.add(column, number(half * SIDE)))
                b.store(bound, b.bitcast(b.gep(array(10).data, [place]), _floats.as_pointer()), align=4)
        return context.get_dummy_value()

    signature = types.void(
        lines, types.int64, tiles, types.int64, types.int64, factors, norms, slacks, constants, slopes, scores,
        types.int64, types.int64,
    )  # fmt: skip
    return signature, generate


@intrinsic
def _round_row(
    typing_context: Any, rows: Any, place: Any, n_columns: Any, unit: Any, out: Any, start: Any, stride: Any
) -> Any:
    """Round columns of a row to multiples of a unit, written as signed bytes, `CHUNK` at a time, `stride` apart.

    If `unit` is 0, it becomes the least one whose multiples reach all columns. Returns the unit, and the squared norms
    of what is written, in units, and of the rounding errors.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        shorts, halves = ir.VectorType(ir.IntType(16), SIDE), ir.VectorType(_i8, SIDE)
        rows, out = (context.make_array(signature.args[n])(context, b, arguments[n]) for n in (0, 4))
        place, n_columns, given, start, stride = (arguments[n] for n in (1, 2, 3, 5, 6))
        row = b.gep(rows.data, [b.mul(place, b.extract_value(rows.shape, 1))])
        zeros = ir.Constant(_floats, [0.0] * SIDE)

        def vector(name: str, kind: Any, values: list[Any], fastmath: tuple[str, ...] = ()) -> Any:
            function = ir.FunctionType(kind, [value.type for value in values])
            return b.call(b.module.declare_intrinsic(f"llvm.{name}", (), function), values, fastmath=fastmath)

        def each_16(totals: list[Any], step: Callable[..., list[Any]]) -> list[Any]:
            """Loop over the columns, 16 at a time."""
            before, loop, after = b.block, b.append_basic_block("columns"), b.append_basic_block("rounded")
            b.branch(loop)
            b.position_at_end(loop)
            column, sums = b.phi(_i64), [b.phi(total.type) for total in totals]
            column.add_incoming(number(0), before)
            values = b.load(b.bitcast(b.gep(row, [column]), shorts.as_pointer()), align=2)
            added = step(column, b.sitofp(values, _floats), *sums)
            following = b.add(column, number(SIDE))
            column.add_incoming(following, loop)
            for total, value, value_added in zip(sums, totals, added, strict=True):
                total.add_incoming(value, before)
                total.add_incoming(value_added, loop)
            b.cbranch(b.icmp_signed("<", following, n_columns), loop, after)
            b.position_at_end(after)
            return added

        def larger(column: Any, values: Any, largest: Any) -> list[Any]:
            return [vector("maxnum.v16f32", _floats, [largest, vector("fabs.v16f32", _floats, [values])])]

        largest = b.fptosi(vector("vector.reduce.fmax.v16f32", _f32, each_16([zeros], larger)), _i64)
        least = b.sdiv(b.add(largest, number(126)), number(127))
        least = b.select(b.icmp_signed(">", least, number(1)), least, number(1))
        unit = b.select(b.icmp_signed(">", given, number(0)), given, least)
        inverse = spread(b, b.fdiv(ir.Constant(_f32, 1.0), b.sitofp(unit, _f32)), _floats)
        negative = spread(b, b.fneg(b.sitofp(unit, _f32)), _floats)

        def rounded(column: Any, values: Any, kept: Any, lost: Any) -> list[Any]:
            multiples = vector("rint.v16f32", _floats, [b.fmul(values, inverse)])
            rest = vector("fma.v16f32", _floats, [multiples, negative, values])
            at = b.add(b.mul(b.sdiv(column, number(CHUNK)), stride), b.srem(column, number(CHUNK)))
            target = b.bitcast(b.gep(out.data, [b.add(start, at)]), halves.as_pointer())
            b.store(b.trunc(b.fptosi(multiples, _ints), halves), target, align=1)
            return [
                vector("fma.v16f32", _floats, [value, value, total])
                for value, total in ((multiples, kept), (rest, lost))
            ]

        # Sums of whole numbers are exact in float32 below 2**24, and within the margin of `slacks` beyond.
        sums = [
            vector("vector.reduce.fadd.v16f32", _f32, [ir.Constant(_f32, -0.0), total], ("reassoc",))
            for total in each_16([zeros, zeros], rounded)
        ]
        results = [unit, *(b.fpext(total, ir.DoubleType()) for total in sums)]
        return context.make_tuple(b, signature.return_type, results)

    returned = types.Tuple((types.int64, types.float64, types.float64))
    return returned(rows, types.int64, types.int64, types.int64, out, types.int64, types.int64), generate


@njit
def write_bounds_by_tiles(
    rows: Any, n_columns: Any, places: Any, residual_norms: Any, tiles: Any, rounding: Any, constants: Any, slopes: Any,
    scale: Any, first_panel: Any, n_panels: Any, scores: Any,
) -> None:  # fmt: skip
    """Write lower bounds of the scores that `int16_gemm.score` writes; each panel is packed by `pack_bytes`."""
    n_chunks, last, tail = (n_columns + CHUNK - 1) // CHUNK, places.shape[0] - 1, n_columns // 16
    lines = np.zeros(n_chunks * PAIR_BYTES + CHUNK, np.uint8)
    factors, norms, slacks = np.empty((3, BOUND_ROWS), np.float32)
    start, (centroid_unit, lost, longest) = -lines.ctypes.data % CHUNK, rounding
    begin_tiles(SHAPES)
    for first in range(0, places.shape[0], BOUND_ROWS):
        for r in range(BOUND_ROWS):
            place = places[min(first + r, last)]
            norms[r] = residual_norms[place, tail]
            unit, kept, rest = _round_row(rows, place, n_columns, 0, lines, start + r * CHUNK, PAIR_BYTES)
            factors[r] = np.float32(np.float64(scale) * (unit * centroid_unit))
            slack = unit * np.sqrt(kept) * lost + np.sqrt(rest) * longest
            slacks[r] = np.float32(-1.0001 * np.float64(scale) * slack)
        for p in range(n_panels):
            _bound_block(
                lines, start, tiles, first_panel + p, n_chunks, factors, norms, slacks, constants, slopes, scores,
                first, p * BOUND_ROWS,
            )  # fmt: skip
    end_tiles()


@kernel("void(i2[:,::1], i8, i8[::1], u4[::1], f8[::1])")
def _pack_bytes(rows, n_columns, chosen, out, rounding):  # type: ignore[no-untyped-def]
    """Write the tiles, four columns at a time."""
    n_chunks, unit, lost, longest = (n_columns + CHUNK - 1) // CHUNK, 1, 0.0, 0.0
    line = np.zeros(n_chunks * CHUNK, np.uint8)
    fours = line.view(np.uint32)
    for i in chosen:
        unit = max(unit, _round_row(rows, i, n_columns, 0, line, 0, CHUNK)[0])
    for i in range(chosen.shape[0]):
        _, kept, rest = _round_row(rows, chosen[i], n_columns, unit, line, 0, CHUNK)
        lost, longest = max(lost, np.sqrt(rest)), max(longest, unit * np.sqrt(kept) + np.sqrt(rest))
        base = (i // BOUND_ROWS * n_chunks * PAIR_BYTES + i // SIDE % 2 * TILE_BYTES) // 4 + i % SIDE
        for j in range(n_columns // 4):
            out[base + j // SIDE * (PAIR_BYTES // 4) + j % SIDE * SIDE] = fours[j]
    rounding[0], rounding[1], rounding[2] = unit, lost, longest


def pack_bytes(
    rows: NDArray[np.int16], n_columns: int, chosen: NDArray[np.int64], n_padded: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Pack the rounded first `n_columns` columns of the `chosen` rows; see `int16_gemm.pack_for_bounds`.

    The second array holds what centroids are multiples of, the largest norm of their rounding errors and a bound on
    their norms, all in grid steps.
    """
    tiles, rounding = aligned(n_padded // SIDE * -(-n_columns // CHUNK) * TILE_BYTES), np.empty(3)
    _pack_bytes(rows, n_columns, chosen, tiles.view(np.uint32), rounding)
    return tiles, rounding
