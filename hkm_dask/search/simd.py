"""Vector code that numba's optimizer does not generate by itself, written as LLVM IR.

It is portable: LLVM splits the 64 lanes into registers of the processor's width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import extending, types
from numpy.typing import NDArray

from hkm_dask.compute.jit import kernel

intrinsic: Any = extending.intrinsic
# Without the F16C instruction, or with a manually chosen CPU, LLVM would call a library function that does not exist.
_CAN_WIDEN = bool(llvm.get_host_cpu_features().get("f16c")) and getattr(numba_config, "CPU_NAME", None) is None
#: Values compared at once.
LANES = 64


def _load(context: Any, builder: Any, array_type: Any, array: Any, start: Any) -> Any:
    """Load `LANES` float32 values from a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.bitcast(builder.gep(data, [start]), ir.VectorType(ir.FloatType(), LANES).as_pointer())
    return builder.load(pointer, align=4)


def _broadcast(builder: Any, value: Any) -> Any:
    lanes = ir.VectorType(value.type, LANES)
    first = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        first, ir.Constant(lanes, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    )


@intrinsic
def mask_not_above(typing_context: Any, values: Any, start: Any, limit: Any) -> Any:
    """Tell which of the 64 float32 values from index `start` on are at most `limit`, as a bit mask."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = _load(context, builder, signature.args[0], arguments[0], arguments[1])
        passed = builder.fcmp_ordered("<=", loaded, _broadcast(builder, arguments[2]))
        return builder.bitcast(passed, ir.IntType(LANES))

    return types.uint64(values, types.int64, types.float32), generate


@intrinsic
def lowest_bit(typing_context: Any, mask: Any) -> Any:
    """Return the index of the lowest set bit of a nonzero mask."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def least_of_lanes(typing_context: Any, values: Any, start: Any) -> Any:
    """Return the least of the 64 float32 values from index `start` on, none of which is NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = _load(context, builder, signature.args[0], arguments[0], arguments[1])
        width = LANES
        while width > 1:  # compare the two halves
            width //= 2
            undefined = ir.Constant(lanes.type, ir.Undefined)
            numbers = ir.VectorType(ir.IntType(32), width)
            low, high = (
                builder.shuffle_vector(lanes, undefined, ir.Constant(numbers, list(range(at, at + width))))
                for at in (0, width)
            )
            lanes = builder.select(builder.fcmp_ordered("<", high, low), high, low)
        return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))

    return types.float32(values, types.int64), generate


def _eight_sums(builder: Any, arrays: list[Any], kinds: list[Any], term: Callable[..., Any]) -> Any:
    """Sum a float64 term of the values of some arrays of equal length, in a fixed order.

    Terms go to eight interleaved sums s0 to s7, those after the last whole eight to s0; the result is
    ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7)).
    """
    n = builder.extract_value(arrays[0].shape, 0)
    whole = builder.and_(n, ir.Constant(n.type, -8))

    def add_up(start: Any, stop: Any, sums: Any, n_lanes: int) -> Any:
        """Add the terms from start to stop, `n_lanes` at a time."""
        before, test, loop, after = builder.block, *(builder.append_basic_block(part) for part in ("", "", ""))
        builder.branch(test)
        builder.position_at_end(test)
        at, total = builder.phi(n.type), builder.phi(sums.type)
        at.add_incoming(start, before)
        total.add_incoming(sums, before)
        builder.cbranch(builder.icmp_signed("<", at, stop), loop, after)
        builder.position_at_end(loop)
        lanes = [kind if n_lanes == 1 else ir.VectorType(kind, n_lanes) for kind in kinds]
        values = [
            builder.load(builder.bitcast(builder.gep(array.data, [at]), kind.as_pointer()), align=4)
            for array, kind in zip(arrays, lanes, strict=True)
        ]
        total.add_incoming(builder.fadd(total, term(sums.type, *values)), loop)
        at.add_incoming(builder.add(at, ir.Constant(n.type, n_lanes)), loop)
        builder.branch(test)
        builder.position_at_end(after)
        return total

    zeros = ir.Constant(ir.VectorType(ir.DoubleType(), 8), [0.0] * 8)
    lanes = add_up(ir.Constant(n.type, 0), whole, zeros, 8)
    s = [builder.extract_element(lanes, ir.Constant(ir.IntType(32), lane)) for lane in range(8)]
    s[0] = add_up(whole, n, s[0], 1)
    pairs = [builder.fadd(s[lane], s[lane + 4]) for lane in range(4)]
    return builder.fadd(builder.fadd(pairs[0], pairs[2]), builder.fadd(pairs[1], pairs[3]))


@intrinsic
def weighted_least(typing_context: Any, weights: Any, a: Any, b: Any) -> Any:
    """Compute the float64 sum of ``weights * min(a, b)``, for float32 `a` and `b`, in the order of `_eight_sums`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def term(kind: Any, weight: Any, left: Any, right: Any) -> Any:
            least = builder.select(builder.fcmp_ordered("<", right, left), right, left)
            return builder.fmul(weight, builder.fpext(least, kind))

        arrays = [context.make_array(signature.args[i])(context, builder, arguments[i]) for i in range(3)]
        return _eight_sums(builder, arrays, [ir.DoubleType(), ir.FloatType(), ir.FloatType()], term)

    return types.float64(weights, a, b), generate


@intrinsic
def sum_of_squares(typing_context: Any, x: Any, c: Any) -> Any:
    """Compute the float64 sum of ``(x - c)**2``, for float32 `x` and `c`, in the order of `_eight_sums`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def term(kind: Any, left: Any, right: Any) -> Any:
            difference = builder.fsub(builder.fpext(left, kind), builder.fpext(right, kind))
            return builder.fmul(difference, difference)

        arrays = [context.make_array(signature.args[i])(context, builder, arguments[i]) for i in range(2)]
        return _eight_sums(builder, arrays, [ir.FloatType(), ir.FloatType()], term)

    return types.float64(x, c), generate


@intrinsic
def _widen_lanes(typing_context: Any, values: Any, start: Any, out: Any) -> Any:
    """Convert 16 float16 values, given as bits, to float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half, full = ir.VectorType(ir.HalfType(), 16), ir.VectorType(ir.FloatType(), 16)
        source, target = (context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in (0, 2))
        bits = builder.load(builder.bitcast(builder.gep(source, [arguments[1]]), half.as_pointer()), align=2)
        place = builder.bitcast(builder.gep(target, [arguments[1]]), full.as_pointer())
        builder.store(builder.fpext(bits, full), place, align=4)
        return context.get_dummy_value()

    return types.void(values, types.int64, out), generate


@kernel("void(u2[::1], f4[::1])")
def _widen(bits, out):  # type: ignore[no-untyped-def]
    for start in range(0, bits.shape[0] - 15, 16):
        _widen_lanes(bits, start, out)


def widen(values: NDArray[np.float16], out: NDArray[np.float32]) -> None:
    """Convert float16 to float32 exactly, five times as fast as NumPy where the processor has an instruction for it.

    Both arrays are C-contiguous and have the same shape.

    >>> out = np.empty(20, np.float32)
    >>> widen(np.arange(20, dtype=np.float16), out)
    >>> out[-1]
    np.float32(19.0)
    """
    flat, flat_out = values.reshape(-1), out.reshape(-1)
    whole = len(flat) // 16 * 16 if _CAN_WIDEN else 0
    if whole:
        _widen(flat[:whole].view(np.uint16), flat_out[:whole])
    with np.errstate(invalid="ignore"):  # raised by signaling NaNs on ARM
        flat_out[whole:] = flat[whole:]
