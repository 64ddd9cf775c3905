"""Scores from a matrix product of 16-bit integers, one tile at a time.

Where the processor can (x86 since AVX2, faster still with AVX-512 VNNI), one instruction multiplies two neighboring
coordinates and adds the products, so this takes at most half the time of a float32 product. It is also exact: the only
rounding is that to 16 bits, which is known for every row. Centroids are packed into panels as wide as the registers;
rows are read in place. Processors with a matrix unit use that instead, see `amx`.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import extending, njit, types
from numpy.typing import NDArray

from hkm_dask.compute.jit import kernel
from hkm_dask.search import amx, amx_bounds

intrinsic: Any = extending.intrinsic

#: Bound on coordinates and norms of rows, such that sums of products fit in 32 bits.
LARGEST = 32767


def _instructions() -> dict[int, str]:
    """Return the instruction that multiplies pairs, keyed by the 32-bit lanes of its registers."""
    features = llvm.get_host_cpu_features()
    chosen_by_hand = any(getattr(numba_config, name) is not None for name in ("CPU_NAME", "CPU_FEATURES"))
    known = {"avx512bw": (16, "llvm.x86.avx512.pmaddw.d.512"), "avx2": (8, "llvm.x86.avx2.pmadd.wd")}
    return dict(known[name] for name in known if features.get(name) and not chosen_by_hand)


_INSTRUCTIONS = _instructions()
#: Lanes of a register and rows of a block, which has two registers of sums per row.
_LANES, _VECTOR_ROWS = (16, 8) if 16 in _INSTRUCTIONS else (8, 6) if 8 in _INSTRUCTIONS else (4, 6)
_BY_TILES = amx.is_at_hand()
#: Rows scored at once, and centroids of a panel.
BLOCK_ROWS, PANEL = amx.SIDE if _BY_TILES else _VECTOR_ROWS, 2 * _LANES
#: Rows whose bounds are written at once, and whether bounds are looser than scores.
BOUND_ROWS, BOUNDS_ARE_LOOSE = amx_bounds.BOUND_ROWS if _BY_TILES else _VECTOR_ROWS, _BY_TILES
#: Number of columns that cost no more than one.
COLUMNS = amx.CHUNK if _BY_TILES else 16
#: Numba type of packed centroids; it tells apart kernels compiled for tiles and for vectors.
PACKED = "u1[::1]" if _BY_TILES else "i2[::1]"

_i16, _i32, _i64, _f32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_ints, _shorts, _floats = (ir.VectorType(kind, n) for kind, n in ((_i32, _LANES), (_i16, 2 * _LANES), (_f32, _LANES)))


def _number(value: int) -> Any:
    return ir.Constant(_i64, value)


def _load(builder: Any, pointer: Any, at: Any, kind: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(pointer, [at]), kind.as_pointer()), align=2)


def _multiply_pairs(builder: Any, a: Any, b: Any) -> Any:
    """Multiply 16-bit lanes and add neighboring products, by one instruction where there is one."""
    lanes = a.type.count // 2
    sums = ir.VectorType(_i32, lanes)
    if lanes in _INSTRUCTIONS:
        kind = ir.FunctionType(sums, [a.type, a.type])
        return builder.call(builder.module.declare_intrinsic(_INSTRUCTIONS[lanes], (), kind), [a, b])
    wide = ir.VectorType(_i32, 2 * lanes)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    even, odd = (
        builder.shuffle_vector(
            products, ir.Constant(wide, ir.Undefined), ir.Constant(sums, list(range(first, 2 * lanes, 2)))
        )
        for first in (0, 1)
    )
    return builder.add(even, odd)


@intrinsic
def inner_product(typing_context: Any, a: Any, i: Any, b: Any, j: Any, first: Any, last: Any) -> Any:
    """Compute the inner product of rows `a[i]` and `b[j]`, int16 of equal width, over columns `first` to `last`.

    The number of columns is a positive multiple of 16.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        lanes = 8
        sums, shorts = ir.VectorType(_i32, lanes), ir.VectorType(_i16, 2 * lanes)
        rows = []
        for n in (0, 2):
            array = context.make_array(signature.args[n])(context, b, arguments[n])
            rows.append(b.gep(array.data, [b.mul(arguments[n + 1], b.extract_value(array.shape, 1))]))
        before, loop, after = b.block, b.append_basic_block("columns"), b.append_basic_block("sum")
        b.branch(loop)
        b.position_at_end(loop)
        column, total = b.phi(_i64), b.phi(sums)
        column.add_incoming(arguments[4], before)
        total.add_incoming(ir.Constant(sums, [0] * lanes), before)
        added = b.add(total, _multiply_pairs(b, *(_load(b, row, column, shorts) for row in rows)))
        following = b.add(column, _number(2 * lanes))
        column.add_incoming(following, loop)
        total.add_incoming(added, loop)
        b.cbranch(b.icmp_signed("<", following, arguments[5]), loop, after)
        b.position_at_end(after)
        reduce = b.module.declare_intrinsic("llvm.vector.reduce.add.v8i32", (), ir.FunctionType(_i32, [sums]))
        return b.call(reduce, [added])

    return types.int32(a, types.int64, b, types.int64, types.int64, types.int64), generate


@intrinsic
def _score_block(
    typing_context: Any, rows: Any, n_columns: Any, places: Any, residual_norms: Any, panels: Any, constants: Any,
    slopes: Any,
    scale: Any, first: Any, panel: Any, scores: Any, column: Any,
) -> Any:  # fmt: skip
    """Score `_VECTOR_ROWS` rows from line `first` on against one panel; the last row is repeated past the end."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        def array(n: int) -> Any:
            return context.make_array(signature.args[n])(context, b, arguments[n])

        rows, places, residual_norms, panels = array(0), array(2), array(3), array(4)
        constants, slopes, scores = array(5), array(6), array(10)
        n_columns, scale, first, panel, column = (arguments[n] for n in (1, 7, 8, 9, 11))
        width, n_lines = b.extract_value(rows.shape, 1), b.extract_value(places.shape, 0)
        n_tails, tail = b.extract_value(residual_norms.shape, 1), b.lshr(n_columns, _number(4))
        stride = b.extract_value(scores.shape, 1)
        last = b.sub(n_lines, _number(1))
        pairs_of, norm_of = [], []
        for r in range(_VECTOR_ROWS):
            line = b.add(first, _number(r))
            line = b.select(b.icmp_signed("<", line, n_lines), line, last)
            place = b.load(b.gep(places.data, [line]))
            pairs_of.append(b.bitcast(b.gep(rows.data, [b.mul(place, width)]), _i32.as_pointer()))
            norm_of.append(b.load(b.gep(residual_norms.data, [b.add(b.mul(place, n_tails), tail)])))
        n_pairs = b.lshr(n_columns, _number(1))
        base = b.bitcast(b.gep(panels.data, [b.mul(panel, b.mul(n_columns, _number(PANEL)))]), _i32.as_pointer())

        before, loop, after = b.block, b.append_basic_block("pairs"), b.append_basic_block("scores")
        b.branch(loop)
        b.position_at_end(loop)
        pair = b.phi(_i64)
        pair.add_incoming(_number(0), before)
        sums = [[b.phi(_ints) for _ in range(2)] for _ in range(_VECTOR_ROWS)]
        at = b.mul(pair, _number(PANEL))
        centroids = [_load(b, base, b.add(at, _number(half * _LANES)), _shorts) for half in range(2)]
        for r in range(_VECTOR_ROWS):
            row_pair = b.bitcast(amx.spread(b, b.load(b.gep(pairs_of[r], [pair]), align=4), _ints), _shorts)
            for half in range(2):
                sums[r][half].add_incoming(ir.Constant(_ints, [0] * _LANES), before)
                total = b.add(sums[r][half], _multiply_pairs(b, row_pair, centroids[half]))
                sums[r][half].add_incoming(total, loop)
                sums[r][half] = total
        following = b.add(pair, _number(1))
        pair.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("<", following, n_pairs), loop, after)

        b.position_at_end(after)
        kind = ir.FunctionType(_floats, [_floats] * 3)
        fma = b.module.declare_intrinsic(f"llvm.fma.v{_LANES}f32", (), kind)
        start = b.mul(panel, _number(PANEL))
        factor = amx.spread(b, scale, _floats)
        for half in range(2):
            position = b.add(start, _number(half * _LANES))
            constant, slope = _load(b, constants.data, position, _floats), _load(b, slopes.data, position, _floats)
            for r in range(_VECTOR_ROWS):
                score = b.call(fma, [b.sitofp(sums[r][half], _floats), factor, constant])
                score = b.call(fma, [amx.spread(b, norm_of[r], _floats), slope, score])
                place = b.add(b.mul(b.add(first, _number(r)), stride), b.add(column, _number(half * _LANES)))
                b.store(score, b.bitcast(b.gep(scores.data, [place]), _floats.as_pointer()), align=4)
        return context.get_dummy_value()

    signature = types.void(
        rows, n_columns, places, residual_norms, panels, constants, slopes, scale, first, panel, scores, column
    )  # fmt: skip
    return signature, generate


@njit
def _write_by_vectors(
    rows: Any, n_columns: Any, places: Any, residual_norms: Any, panels: Any, constants: Any, slopes: Any, scale: Any,
    first_panel: Any, n_panels: Any, scores: Any,
) -> None:  # fmt: skip
    for p in range(n_panels):
        for i in range(0, places.shape[0], _VECTOR_ROWS):
            _score_block(
                rows, n_columns, places, residual_norms, panels, constants, slopes, scale, i, first_panel + p, scores,
                p * PANEL,
            )  # fmt: skip


@njit
def _write_bounds_by_vectors(
    rows: Any, n_columns: Any, places: Any, residual_norms: Any, panels: Any, rounding: Any, constants: Any,
    slopes: Any, scale: Any, first_panel: Any, n_panels: Any, scores: Any,
) -> None:  # fmt: skip
    _write_by_vectors(
        rows, n_columns, places, residual_norms, panels, constants, slopes, scale, first_panel, n_panels, scores
    )  # fmt: skip


#: As `score`, but callable from other kernels.
write_scores = amx.write_by_tiles if _BY_TILES else _write_by_vectors
#: Writes lower bounds of what `score` writes, or the same if they cost no less, from the two arrays that
#: `pack_for_bounds` returns. The number of lines of `scores` is a multiple of `BOUND_ROWS`.
write_bounds = amx_bounds.write_bounds_by_tiles if _BY_TILES else _write_bounds_by_vectors


@kernel(f"void(i2[:,::1], i8, i8[::1], f4[:,::1], {PACKED}, f4[::1], f4[::1], f4, i8, i8, f4[:,::1])")
def score(  # type: ignore[no-untyped-def]
    rows, n_columns, places, residual_norms, panels, constants, slopes, scale, first_panel, n_panels, scores
):
    """Write ``constants + scale * (rows · centroids) + residual_norms * slopes`` for rows and panels of centroids.

    Of each row in `places`, the first `n_columns` are used, a multiple of 16, with column ``n_columns // 16`` of
    `residual_norms`. `panels` come from `pack`; `constants` and `slopes` are padded to a multiple of `PANEL` centroids.
    The output `scores` is (n, n_panels * PANEL or more), where n is at least the number of `places` and a multiple of
    `BLOCK_ROWS`.
    """
    write_scores(
        rows, n_columns, places, residual_norms, panels, constants, slopes, scale, first_panel, n_panels, scores
    )  # fmt: skip


@kernel("void(i2[:,::1], i8, i8[::1], i2[::1])")
def _pack(rows, n_columns, chosen, out):  # type: ignore[no-untyped-def]
    for i in range(chosen.shape[0]):
        base = (i // PANEL) * PANEL * n_columns + 2 * (i % PANEL)
        for j in range(0, n_columns, 2):
            at = base + j * PANEL
            out[at] = rows[chosen[i], j]
            out[at + 1] = rows[chosen[i], j + 1]


def pack(rows: NDArray[np.int16], n_columns: int, chosen: NDArray[np.int64]) -> NDArray[Any]:
    """Pack the first `n_columns` (an even number) columns of the `chosen` rows into panels for `score`.

    The panels are padded with zeros to a multiple of `PANEL` centroids.
    """
    if _BY_TILES:
        return amx.pack(rows, n_columns, chosen, padded(len(chosen)))
    out = np.zeros(padded(len(chosen)) * n_columns, np.int16)
    _pack(rows, n_columns, chosen, out)
    return out


def pack_for_bounds(
    rows: NDArray[np.int16], n_columns: int, chosen: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Pack as `pack` does, for `write_bounds`; returns also how centroids were rounded, if they were."""
    if _BY_TILES:
        return amx_bounds.pack_bytes(rows, n_columns, chosen, padded(len(chosen)))
    return pack(rows, n_columns, chosen), np.empty(0)


def padded(n_centroids: int) -> int:
    """Round a number of centroids up to whole panels.

    >>> padded(1000) % PANEL, 1000 <= padded(1000) < 1000 + PANEL
    (0, True)
    """
    return -(-n_centroids // PANEL) * PANEL
