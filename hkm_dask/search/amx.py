"""Scores computed by the matrix unit of x86 processors that have one (AMX): 16 rows by 16 centroids at a time.

AMX multiplies matrices of bytes, several times as fast as 16-bit vectors are multiplied. A 16-bit integer is 256 times
its signed upper byte plus its unsigned lower byte, so a 16-bit product is the weighted sum of four byte products. In 32
bits it equals what `int16_gemm` computes otherwise, bit for bit.

A lower bound of a score needs a single one, of the integers rounded to multiples of a larger unit. By the
Cauchy-Schwarz inequality, rounding changes a product by at most the norms of the rounding errors times those of the
vectors.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import extending, njit, types
from numpy.typing import NDArray

from hkm_dask.compute.jit import kernel

intrinsic: Any = extending.intrinsic

#: Rows (or centroids) of a tile; columns of a tile; its bytes.
SIDE, CHUNK, _TILE_BYTES = 16, 64, 1024
#: Rows, and centroids, whose bounds are written at once.
_BOTH = 2 * SIDE
#: Bytes of `CHUNK` columns of 16 rows or centroids: one tile of upper bytes and one of lower bytes.
_PAIR_BYTES = 2 * _TILE_BYTES
#: Linux system call to request registers that are not enabled by default, and its arguments for AMX tile data.
_ARCH_PRCTL, _REQUEST_REGISTERS, _TILE_DATA = 158, 0x1023, 18
#: Tile configuration: all eight tiles have 16 rows of 64 bytes (palette, 16 two-byte widths, 16 heights).
_SHAPES = np.zeros(64, np.uint8)
_SHAPES[0], _SHAPES[16:32:2], _SHAPES[48:56] = 1, CHUNK, SIDE
#: Tile numbers: sums of upper, mixed and lower byte products, then upper and lower bytes of the rows and the centroids.
_UPPER, _MIXED, _LOWER, _ROWS_UPPER, _ROWS_LOWER, _UPPER_TILE, _LOWER_TILE = range(7)
_PRODUCTS = (
    ("ss", _UPPER, _ROWS_UPPER, _UPPER_TILE), ("su", _MIXED, _ROWS_UPPER, _LOWER_TILE),
    ("us", _MIXED, _ROWS_LOWER, _UPPER_TILE), ("uu", _LOWER, _ROWS_LOWER, _LOWER_TILE),
)  # fmt: skip

_i8, _i32, _i64, _f32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_bytes, _void = _i8.as_pointer(), ir.VoidType()
_ints, _floats = ir.VectorType(_i32, SIDE), ir.VectorType(_f32, SIDE)


def is_at_hand() -> bool:
    """Tell whether this process may use AMX tiles; ``HKM_AMX=0`` in the environment disables them."""
    chosen_by_hand = any(getattr(numba_config, name) is not None for name in ("CPU_NAME", "CPU_FEATURES"))
    features = llvm.get_host_cpu_features()
    if chosen_by_hand or not (features.get("amx-int8") and features.get("avx512bw")):
        return False
    if sys.platform != "linux" or os.environ.get("HKM_AMX") == "0":
        return False
    request = ctypes.CDLL(None, use_errno=True).syscall
    return bool(request(_ARCH_PRCTL, _REQUEST_REGISTERS, _TILE_DATA) == 0)


def _call(builder: Any, name: str, *arguments: Any) -> None:
    kind = ir.FunctionType(_void, [argument.type for argument in arguments])
    builder.call(builder.module.declare_intrinsic(f"llvm.x86.{name}", (), kind), arguments)


def _tile(number: int) -> Any:
    return ir.Constant(_i8, number)


def _number(value: int) -> Any:
    return ir.Constant(_i64, value)


def spread(builder: Any, value: Any, kind: Any) -> Any:
    """Return a vector of the given type with `value` in every lane."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_i32, 0))
    lanes = ir.VectorType(_i32, kind.count)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(lanes, [0] * kind.count))


@intrinsic
def _begin_tiles(typing_context: Any, shapes: Any) -> Any:
    """Configure the shapes of the tiles."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        _call(b, "ldtilecfg", context.make_array(signature.args[0])(context, b, arguments[0]).data)
        return context.get_dummy_value()

    return types.void(shapes), generate


@intrinsic
def _end_tiles(typing_context: Any) -> Any:
    """Release the tiles, so that the operating system need not save them."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        _call(b, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _split_columns(typing_context: Any, row: Any, column: Any, out: Any, at: Any) -> Any:
    """Write the upper and the lower bytes of 16 columns of a row, `_TILE_BYTES` apart."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        shorts, halves = ir.VectorType(ir.IntType(16), SIDE), ir.VectorType(_i8, SIDE)
        source, target = (context.make_array(signature.args[n])(context, b, arguments[n]).data for n in (0, 2))
        values = b.load(b.bitcast(b.gep(source, [arguments[1]]), shorts.as_pointer()), align=2)
        upper = b.trunc(b.lshr(values, ir.Constant(shorts, [8] * SIDE)), halves)
        for half, offset in ((upper, 0), (b.trunc(values, halves), _TILE_BYTES)):
            place = b.gep(target, [b.add(arguments[3], _number(offset))])
            b.store(half, b.bitcast(place, halves.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(row, types.int64, out, types.int64), generate


@intrinsic
def _score_tile(
    typing_context: Any, lines: Any, start: Any, tiles: Any, tile: Any, n_chunks: Any, norms: Any, constants: Any,
    slopes: Any, scale: Any, scores: Any, first: Any, column: Any,
) -> Any:  # fmt: skip
    """Write the scores of 16 rows (lines of `scores` from `first` on) against the 16 centroids of a tile."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        def array(n: int) -> Any:
            return context.make_array(signature.args[n])(context, b, arguments[n])

        start, tile, n_chunks, scale, first, column = (arguments[n] for n in (1, 3, 4, 8, 10, 11))
        lines = b.gep(array(0).data, [start])
        centroids = b.gep(array(2).data, [b.mul(tile, b.mul(n_chunks, _number(_PAIR_BYTES)))])
        with b.goto_entry_block():
            sums = b.alloca(_ints, 3 * SIDE)
            sums.align = 64
        row_bytes = _number(CHUNK)
        before, loop, after = b.block, b.append_basic_block("chunks"), b.append_basic_block("scores")
        for n in (_UPPER, _MIXED, _LOWER):
            _call(b, "tilezero", _tile(n))
        b.branch(loop)
        b.position_at_end(loop)
        at = b.phi(_i64)
        at.add_incoming(_number(0), before)
        for n, source, offset in (
            (_ROWS_UPPER, lines, 0), (_UPPER_TILE, centroids, 0),
            (_LOWER_TILE, centroids, _TILE_BYTES), (_ROWS_LOWER, lines, _TILE_BYTES),
        ):  # fmt: skip
            _call(b, "tileloadd64", _tile(n), b.gep(source, [b.add(at, _number(offset))]), row_bytes)
        for signs, into, left, right in _PRODUCTS:
            _call(b, f"tdpb{signs}d", _tile(into), _tile(left), _tile(right))
        following = b.add(at, _number(_PAIR_BYTES))
        at.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("<", following, b.mul(n_chunks, _number(_PAIR_BYTES))), loop, after)

        b.position_at_end(after)
        for n in (_UPPER, _MIXED, _LOWER):
            _call(b, "tilestored64", _tile(n), b.bitcast(b.gep(sums, [_number(n * SIDE)]), _bytes), row_bytes)
        fma = b.module.declare_intrinsic(f"llvm.fma.v{SIDE}f32", (), ir.FunctionType(_floats, [_floats] * 3))
        position, stride = b.mul(tile, _number(SIDE)), b.extract_value(array(9).shape, 1)
        constant, slope = (
            b.load(b.bitcast(b.gep(array(n).data, [position]), _floats.as_pointer()), align=4) for n in (6, 7)
        )
        factor, byte = spread(b, scale, _floats), ir.Constant(_ints, [8] * SIDE)
        for r in range(SIDE):
            upper, mixed, lower = (b.load(b.gep(sums, [_number(n * SIDE + r)]), align=64) for n in range(3))
            total = b.add(b.shl(b.add(b.shl(upper, byte), mixed), byte), lower)
            score = b.call(fma, [b.sitofp(total, _floats), factor, constant])
            norm = b.load(b.gep(array(5).data, [_number(r)]))
            score = b.call(fma, [spread(b, norm, _floats), slope, score])
            place = b.add(b.mul(b.add(first, _number(r)), stride), column)
            b.store(score, b.bitcast(b.gep(array(9).data, [place]), _floats.as_pointer()), align=4)
        return context.get_dummy_value()

    signature = types.void(
        lines, types.int64, tiles, types.int64, types.int64, norms, constants, slopes, types.float32, scores,
        types.int64, types.int64,
    )  # fmt: skip
    return signature, generate


@njit
def write_by_tiles(
    rows: Any, n_columns: Any, places: Any, residual_norms: Any, tiles: Any, constants: Any, slopes: Any, scale: Any,
    first_panel: Any, n_panels: Any, scores: Any,
) -> None:  # fmt: skip
    """Write scores as `int16_gemm.score` does; each panel, packed by `pack`, is two tiles."""
    n_chunks, last, tail = (n_columns + CHUNK - 1) // CHUNK, places.shape[0] - 1, n_columns // 16
    lines, norms = np.zeros(n_chunks * _PAIR_BYTES + CHUNK, np.uint8), np.empty(SIDE, np.float32)
    start = -lines.ctypes.data % CHUNK
    _begin_tiles(_SHAPES)
    for first in range(0, places.shape[0], SIDE):
        for r in range(SIDE):
            place = places[min(first + r, last)]
            norms[r] = residual_norms[place, tail]
            row = rows[place]
            for column in range(0, n_columns, 16):
                at = start + column // CHUNK * _PAIR_BYTES + r * CHUNK + column % CHUNK
                _split_columns(row, column, lines, at)
        for t in range(2 * n_panels):
            _score_tile(
                lines, start, tiles, 2 * first_panel + t, n_chunks, norms, constants, slopes, scale, scores, first,
                t * SIDE,
            )  # fmt: skip
    _end_tiles()


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
        n_bytes = b.mul(n_chunks, _number(_PAIR_BYTES))
        rows, centroids = b.gep(array(0).data, [start]), b.gep(array(2).data, [b.mul(panel, n_bytes)])
        with b.goto_entry_block():
            sums = b.alloca(_ints, 4 * SIDE)
            sums.align = 64
        row_bytes = _number(CHUNK)
        before, loop, after = b.block, b.append_basic_block("chunks"), b.append_basic_block("bounds")
        for n in range(4):
            _call(b, "tilezero", _tile(n))
        b.branch(loop)
        b.position_at_end(loop)
        at = b.phi(_i64)
        at.add_incoming(_number(0), before)
        for n in range(2):
            place = b.add(at, _number(n * _TILE_BYTES))
            _call(b, "tileloadd64", _tile(4 + n), b.gep(rows, [place]), row_bytes)
            _call(b, "tileloadd64", _tile(6 + n), b.gep(centroids, [place]), row_bytes)
        for n in range(4):
            _call(b, "tdpbssd", _tile(n), _tile(4 + n // 2), _tile(6 + n % 2))
        following = b.add(at, _number(_PAIR_BYTES))
        at.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("<", following, n_bytes), loop, after)

        b.position_at_end(after)
        for n in range(4):
            _call(b, "tilestored64", _tile(n), b.bitcast(b.gep(sums, [_number(n * SIDE)]), _bytes), row_bytes)
        fma = b.module.declare_intrinsic(f"llvm.fma.v{SIDE}f32", (), ir.FunctionType(_floats, [_floats] * 3))
        stride = b.extract_value(array(10).shape, 1)
        for half in range(2):
            position = b.add(b.mul(panel, _number(_BOTH)), _number(half * SIDE))
            constant, slope = (
                b.load(b.bitcast(b.gep(array(n).data, [position]), _floats.as_pointer()), align=4) for n in (8, 9)
            )
            for r in range(_BOTH):
                total = b.load(b.gep(sums, [_number((r // SIDE * 2 + half) * SIDE + r % SIDE)]), align=64)
                factor, norm, slack = (
                    spread(b, b.load(b.gep(array(n).data, [_number(r)])), _floats) for n in (5, 6, 7)
                )
                score = b.call(fma, [b.sitofp(total, _floats), factor, constant])
                bound = b.fsub(b.call(fma, [norm, slope, score]), slack)
                place = b.add(b.mul(b.add(first, _number(r)), stride), b.add(column, _number(half * SIDE)))
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
        whole, zeros = _floats, ir.Constant(_floats, [0.0] * SIDE)

        def call(name: str, kind: Any, values: list[Any], fastmath: tuple[str, ...] = ()) -> Any:
            function = ir.FunctionType(kind, [value.type for value in values])
            return b.call(b.module.declare_intrinsic(f"llvm.{name}", (), function), values, fastmath=fastmath)

        def each_16(totals: list[Any], step: Callable[..., list[Any]]) -> list[Any]:
            """Loop over the columns, 16 at a time."""
            before, loop, after = b.block, b.append_basic_block("columns"), b.append_basic_block("rounded")
            b.branch(loop)
            b.position_at_end(loop)
            column, sums = b.phi(_i64), [b.phi(total.type) for total in totals]
            column.add_incoming(_number(0), before)
            values = b.load(b.bitcast(b.gep(row, [column]), shorts.as_pointer()), align=2)
            added = step(column, b.sitofp(values, whole), *sums)
            following = b.add(column, _number(SIDE))
            column.add_incoming(following, loop)
            for total, value, value_added in zip(sums, totals, added, strict=True):
                total.add_incoming(value, before)
                total.add_incoming(value_added, loop)
            b.cbranch(b.icmp_signed("<", following, n_columns), loop, after)
            b.position_at_end(after)
            return added

        def larger(column: Any, values: Any, largest: Any) -> list[Any]:
            return [call("maxnum.v16f32", whole, [largest, call("fabs.v16f32", whole, [values])])]

        largest = b.fptosi(call("vector.reduce.fmax.v16f32", _f32, each_16([zeros], larger)), _i64)
        least = b.sdiv(b.add(largest, _number(126)), _number(127))
        least = b.select(b.icmp_signed(">", least, _number(1)), least, _number(1))
        unit = b.select(b.icmp_signed(">", given, _number(0)), given, least)
        inverse = spread(b, b.fdiv(ir.Constant(_f32, 1.0), b.sitofp(unit, _f32)), whole)
        negative = spread(b, b.fneg(b.sitofp(unit, _f32)), whole)

        def rounded(column: Any, values: Any, kept: Any, lost: Any) -> list[Any]:
            multiples = call("rint.v16f32", whole, [b.fmul(values, inverse)])
            rest = call("fma.v16f32", whole, [multiples, negative, values])
            at = b.add(b.mul(b.sdiv(column, _number(CHUNK)), stride), b.srem(column, _number(CHUNK)))
            target = b.bitcast(b.gep(out.data, [b.add(start, at)]), halves.as_pointer())
            b.store(b.trunc(b.fptosi(multiples, _ints), halves), target, align=1)
            return [
                call("fma.v16f32", whole, [value, value, total]) for value, total in ((multiples, kept), (rest, lost))
            ]

        # Sums of whole numbers are exact in float32 below 2**24, and within the margin of `slacks` beyond.
        sums = [
            call("vector.reduce.fadd.v16f32", _f32, [ir.Constant(_f32, -0.0), total], ("reassoc",))
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
    lines = np.zeros(n_chunks * _PAIR_BYTES + CHUNK, np.uint8)
    norms, slacks, factors = np.empty(_BOTH, np.float32), np.empty(_BOTH, np.float32), np.empty(_BOTH, np.float32)
    start, (centroid_unit, lost, longest) = -lines.ctypes.data % CHUNK, rounding
    _begin_tiles(_SHAPES)
    for first in range(0, places.shape[0], _BOTH):
        for r in range(_BOTH):
            place = places[min(first + r, last)]
            norms[r] = residual_norms[place, tail]
            unit, kept, rest = _round_row(rows, place, n_columns, 0, lines, start + r * CHUNK, _PAIR_BYTES)
            factors[r] = np.float32(np.float64(scale) * (unit * centroid_unit))
            slack = unit * np.sqrt(kept) * lost + np.sqrt(rest) * longest
            slacks[r] = np.float32(-1.0001 * np.float64(scale) * slack)
        for p in range(n_panels):
            _bound_block(
                lines, start, tiles, first_panel + p, n_chunks, factors, norms, slacks, constants, slopes, scores,
                first, p * _BOTH,
            )  # fmt: skip
    _end_tiles()


@kernel("void(i2[:,::1], i8, i8[::1], u4[::1])")
def _pack(rows, n_columns, chosen, out):  # type: ignore[no-untyped-def]
    """Write the tiles, four columns at a time."""
    n_chunks = (n_columns + CHUNK - 1) // CHUNK
    for i in range(chosen.shape[0]):
        row = rows[chosen[i]]
        base = (i // SIDE * n_chunks * _PAIR_BYTES) // 4 + i % SIDE
        for j in range(0, n_columns, 4):
            upper, lower = np.uint32(0), np.uint32(0)
            for k in range(4):
                value = np.uint32(row[j + k]) & np.uint32(65535)
                upper |= (value >> np.uint32(8)) << np.uint32(8 * k)
                lower |= (value & np.uint32(255)) << np.uint32(8 * k)
            at = base + j // CHUNK * (_PAIR_BYTES // 4) + j % CHUNK // 4 * SIDE
            out[at] = upper
            out[at + _TILE_BYTES // 4] = lower


def pack(rows: NDArray[np.int16], n_columns: int, chosen: NDArray[np.int64], n_padded: int) -> NDArray[np.uint8]:
    """Pack the first `n_columns` columns of the `chosen` rows into tiles; see `int16_gemm.pack`.

    Four neighboring columns of a centroid are adjacent, as the AMX instruction requires.
    """
    tiles = _aligned(n_padded // SIDE * -(-n_columns // CHUNK) * _PAIR_BYTES)
    _pack(rows, n_columns, chosen, tiles.view(np.uint32))
    return tiles


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
        base = (i // _BOTH * n_chunks * _PAIR_BYTES + i // SIDE % 2 * _TILE_BYTES) // 4 + i % SIDE
        for j in range(n_columns // 4):
            out[base + j // SIDE * (_PAIR_BYTES // 4) + j % SIDE * SIDE] = fours[j]
    rounding[0], rounding[1], rounding[2] = unit, lost, longest


def pack_bytes(
    rows: NDArray[np.int16], n_columns: int, chosen: NDArray[np.int64], n_padded: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Pack the rounded first `n_columns` columns of the `chosen` rows; see `int16_gemm.pack_for_bounds`.

    The second array holds what centroids are multiples of, the largest norm of their rounding errors and a bound on
    their norms, all in grid steps.
    """
    tiles, rounding = _aligned(n_padded // SIDE * -(-n_columns // CHUNK) * _TILE_BYTES), np.empty(3)
    _pack_bytes(rows, n_columns, chosen, tiles.view(np.uint32), rounding)
    return tiles, rounding


def _aligned(n_bytes: int) -> NDArray[np.uint8]:
    """Return zeros that begin at a cache line."""
    room = np.zeros(n_bytes + CHUNK, np.uint8)
    start = -room.ctypes.data % CHUNK
    return room[start : start + n_bytes]
