"""Vector instructions that numba's optimiser does not find by itself, written out in LLVM's own terms.

They are portable: LLVM cuts the 64 lanes into whatever the processor has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types

intrinsic: Any = extending.intrinsic
#: Values compared at once.
LANES = 64


def _load(context: Any, builder: Any, array_type: Any, array: Any, start: Any) -> Any:
    """`LANES` float32 from a contiguous array."""
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
    """Which of 64 float32 values from index `start` on are at most `limit`, as bits of an unsigned integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = _load(context, builder, signature.args[0], arguments[0], arguments[1])
        passed = builder.fcmp_ordered("<=", loaded, _broadcast(builder, arguments[2]))
        return builder.bitcast(passed, ir.IntType(LANES))

    return types.uint64(values, types.int64, types.float32), generate


@intrinsic
def lowest_bit(typing_context: Any, mask: Any) -> Any:
    """Index of the lowest bit set; the mask is not zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def least_of_lanes(typing_context: Any, values: Any, start: Any) -> Any:
    """The least of 64 float32 values from index `start` on, none of them NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = _load(context, builder, signature.args[0], arguments[0], arguments[1])
        width = LANES
        while width > 1:  # halves against each other
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
