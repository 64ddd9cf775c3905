"""Scores computed by the matrix unit of x86 processors that have one (AMX): 16 rows by 16 centroids at a time.

AMX multiplies matrices of bytes, several times as fast as 16-bit vectors are multiplied. A 16-bit integer is 256 times
its signed upper byte plus its unsigned lower byte, so a 16-bit product is the weighted sum of four byte products. In 32
bits it equals what `int16_gemm` computes otherwise, bit for bit.
"""

from __future__ import annotations

import ctypes
import os
import sys
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
SIDE, CHUNK, TILE_BYTES = 16, 64, 1024
#: Bytes of `CHUNK` columns of 16 rows or centroids: one tile of upper bytes and one of lower bytes.
PAIR_BYTES = 2 * TILE_BYTES
#: Linux system call to request registers that are not enabled by default, and its arguments for AMX tile data.
_ARCH_PRCTL, _REQUEST_REGISTERS, _TILE_DATA = 158, 0x1023, 18
#: Tile configuration: all eight tiles have 16 rows of 64 bytes (palette, 16 two-byte widths, 16 heights).
SHAPES = np.zeros(64, np.uint8)
SHAPES[0], SHAPES[16:32:2], SHAPES[48:56] = 1, CHUNK, SIDE
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


def call(builder: Any, name: str, *arguments: Any) -> None:
    """Call an instruction of x86 that returns nothing."""
    kind = ir.FunctionType(_void, [argument.type for argument in arguments])
    builder.call(builder.module.declare_intrinsic(f"llvm.x86.{name}", (), kind), arguments)


def tile_number(number: int) -> Any:
    """Return the constant that names a tile."""
    return ir.Constant(_i8, number)


def number(value: int) -> Any:
    """Return a constant of 64 bits."""
    return ir.Constant(_i64, value)


def spread(builder: Any, value: Any, kind: Any) -> Any:
    """Return a vector of the given type with `value` in every lane."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_i32, 0))
    lanes = ir.VectorType(_i32, kind.count)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(lanes, [0] * kind.count))


@intrinsic
def begin_tiles(typing_context: Any, shapes: Any) -> Any:
    """Configure the shapes of the tiles."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        call(b, "ldtilecfg", context.make_array(signature.args[0])(context, b, arguments[0]).data)
        return context.get_dummy_value()

    return types.void(shapes), generate


@intrinsic
def end_tiles(typing_context: Any) -> Any:
    """Release the tiles, so that the operating system need not save them."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        call(b, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _split_columns(typing_context: Any, row: Any, column: Any, out: Any, at: Any) -> Any:
    """Write the upper and the lower bytes of 16 columns of a row, `TILE_BYTES` apart."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        shorts, halves = ir.VectorType(ir.IntType(16), SIDE), ir.VectorType(_i8, SIDE)
        source, target = (context.make_array(signature.args[n])(context, b, arguments[n]).data for n in (0, 2))
        values = b.load(b.bitcast(b.gep(source, [arguments[1]]), shorts.as_pointer()), align=2)
        upper = b.trunc(b.lshr(values, ir.Constant(shorts, [8] * SIDE)), halves)
        for half, offset in ((upper, 0), (b.trunc(values, halves), TILE_BYTES)):
            place = b.gep(target, [b.add(arguments[3], number(offset))])
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
        centroids = b.gep(array(2).data, [b.mul(tile, b.mul(n_chunks, number(PAIR_BYTES)))])
        with b.goto_entry_block():
            sums = b.alloca(_ints, 3 * SIDE)
            sums.align = 64
        row_bytes = number(CHUNK)
        before, loop, after = b.block, b.append_basic_block("chunks"), b.append_basic_block("scores")
        for n in (_UPPER, _MIXED, _LOWER):
            call(b, "tilezero", tile_number(n))
        b.branch(loop)
        b.position_at_end(loop)
        at = b.phi(_i64)
        at.add_incoming(number(0), before)
        for n, source, offset in (
            (_ROWS_UPPER, lines, 0), (_UPPER_TILE, centroids, 0),
            (_LOWER_TILE, centroids, TILE_BYTES), (_ROWS_LOWER, lines, TILE_BYTES),
        ):  # fmt: skip
            call(b, "tileloadd64", tile_number(n), b.gep(source, [b.add(at, number(offset))]), row_bytes)
        for signs, into, left, right in _PRODUCTS:
            call(b, f"tdpb{signs}d", tile_number(into), tile_number(left), tile_number(right))
        following = b.add(at, number(PAIR_BYTES))
        at.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("<", following, b.mul(n_chunks, number(PAIR_BYTES))), loop, after)

        b.position_at_end(after)
        for n in (_UPPER, _MIXED, _LOWER):
            call(b, "tilestored64", tile_number(n), b.bitcast(b.gep(sums, [number(n * SIDE)]), _bytes), row_bytes)
        fma = b.module.declare_intrinsic(f"llvm.fma.v{SIDE}f32", (), ir.FunctionType(_floats, [_floats] * 3))
        position, stride = b.mul(tile, number(SIDE)), b.extract_value(array(9).shape, 1)
        constant, slope = (
            b.load(b.bitcast(b.gep(array(n).data, [position]), _floats.as_pointer()), align=4) for n in (6, 7)
        )
        factor, byte = spread(b, scale, _floats), ir.Constant(_ints, [8] * SIDE)
        for r in range(SIDE):
            upper, mixed, lower = (b.load(b.gep(sums, [number(n * SIDE + r)]), align=64) for n in range(3))
            total = b.add(b.shl(b.add(b.shl(upper, byte), mixed), byte), lower)
            score = b.call(fma, [b.sitofp(total, _floats), factor, constant])
            norm = b.load(b.gep(array(5).data, [number(r)]))
            score = b.call(fma, [spread(b, norm, _floats), slope, score])
            place = b.add(b.mul(b.add(first, number(r)), stride), column)
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
    lines, norms = np.zeros(n_chunks * PAIR_BYTES + CHUNK, np.uint8), np.empty(SIDE, np.float32)
    start = -lines.ctypes.data % CHUNK
    begin_tiles(SHAPES)
    for first in range(0, places.shape[0], SIDE):
        for r in range(SIDE):
            place = places[min(first + r, last)]
            norms[r] = residual_norms[place, tail]
            row = rows[place]
            for column in range(0, n_columns, 16):
                at = start + column // CHUNK * PAIR_BYTES + r * CHUNK + column % CHUNK
                _split_columns(row, column, lines, at)
        for t in range(2 * n_panels):
            _score_tile(
                lines, start, tiles, 2 * first_panel + t, n_chunks, norms, constants, slopes, scale, scores, first,
                t * SIDE,
            )  # fmt: skip
    end_tiles()


@kernel("void(i2[:,::1], i8, i8[::1], u4[::1])")
def _pack(rows, n_columns, chosen, out):  # type: ignore[no-untyped-def]
    """Write the tiles, four columns at a time."""
    n_chunks = (n_columns + CHUNK - 1) // CHUNK
    for i in range(chosen.shape[0]):
        row = rows[chosen[i]]
        base = (i // SIDE * n_chunks * PAIR_BYTES) // 4 + i % SIDE
        for j in range(0, n_columns, 4):
            upper, lower = np.uint32(0), np.uint32(0)
            for k in range(4):
                value = np.uint32(row[j + k]) & np.uint32(65535)
                upper |= (value >> np.uint32(8)) << np.uint32(8 * k)
                lower |= (value & np.uint32(255)) << np.uint32(8 * k)
            at = base + j // CHUNK * (PAIR_BYTES // 4) + j % CHUNK // 4 * SIDE
            out[at] = upper
            out[at + TILE_BYTES // 4] = lower


def pack(rows: NDArray[np.int16], n_columns: int, chosen: NDArray[np.int64], n_padded: int) -> NDArray[np.uint8]:
    """Pack the first `n_columns` columns of the `chosen` rows into tiles; see `int16_gemm.pack`.

    Four neighboring columns of a centroid are adjacent, as the AMX instruction requires.
    """
    tiles = aligned(n_padded // SIDE * -(-n_columns // CHUNK) * PAIR_BYTES)
    _pack(rows, n_columns, chosen, tiles.view(np.uint32))
    return tiles


def aligned(n_bytes: int) -> NDArray[np.uint8]:
    """Return zeros that begin at a cache line."""
    room = np.zeros(n_bytes + CHUNK, np.uint8)
    start = -room.ctypes.data % CHUNK
    return room[start : start + n_bytes]
