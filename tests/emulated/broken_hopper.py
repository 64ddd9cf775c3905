"""The Hopper kernel, and ways to break it on purpose."""

from __future__ import annotations

from functools import cache

from hkm_dask.search.cuda import kernels as cuda_kernels

_MULTIPLY = "multiply_64x256x16(products[0], matrix_at(a + 32 * k), matrix_at(b + 32 * k), step + k > 0);"
_EXPECT = "barrier_expect(full(at.number), takes_rows ? COLUMNS_BYTES + ROWS_BYTES : COLUMNS_BYTES);"
_ARRIVE = "if (lane < 2) barrier_arrive(empty(stage), lane);"
_LAST = "  // a block must not exit while the other may arrive at its barriers"
_COPY = "load_tile_for_both(columns_of"
_BASE = "(shared_address(pool) + 1023) & ~1023u"
#: A piece of the source, its replacement, and the emulator's error; empty if only the scores are wrong.
BROKEN = {
    "wrong parity": ("barrier_wait(full(at.number), at.parity);", "barrier_wait(full(at.number), at.parity ^ 1);", ""),
    "stage not awaited": ("barrier_wait(full(at.number), at.parity);", ";", ""),
    "stage filled before it is empty": ("barrier_wait(empty(at.number), at.parity ^ 1);", ";", ""),
    "stage released before it is read": ("if (step > 0) release(last);", "release(at.number);", ""),
    "products not awaited": ("products_wait<1>();", ";", ""),
    "bytes of the other block not expected": (_EXPECT, _EXPECT.replace("COLUMNS_BYTES", "COLUMNS_BYTES / 2"), ""),
    "registers not fenced": ("products_begin();", ";", "wgmma.fence"),
    "products not committed": ("products_commit();", ";", "before it waited"),
    "registers read too early": ("products_finish(products[0]);", ";", ""),
    "another swizzle": (_MULTIPLY, _MULTIPLY.replace("b + 32 * k)", "b + 32 * k) ^ 3ull << 62"), "128-byte swizzle"),
    "another stride": (_MULTIPLY, _MULTIPLY.replace("b + 32 * k)", "b + 32 * k) - (1ull << 32)"), ""),
    "another chunk": (_MULTIPLY, _MULTIPLY.replace("a + 32 * k", "a + 16 * k"), ""),
    "products of the tile before added": (_MULTIPLY, _MULTIPLY.replace("step + k > 0", "1"), ""),
    "barriers not fenced": ("barrier_init_fence();", ";", "should be fenced"),
    "blocks not synchronized": ("cluster_sync();\n\n", ";", "no barrier|be synchronized"),
    "gone before the other block": (f"cluster_sync();{_LAST}", ";", "returned"),
    "too few arrivals": ("barrier_init(empty(stage), 2 * 8);", "barrier_init(empty(stage), 8);", ""),
    "no arrival at the other block": (_ARRIVE, _ARRIVE.replace("< 2", "== block"), "deadlock"),
    "no registers given up": ("decrease_registers<40>();", ";", "deadlock.*setmaxnreg"),
    "lines not aligned": (_BASE, f"BROKEN ? shared_address(pool) : {_BASE}", "multiple of 1024"),
    "a copy for one block": (_COPY, f"(BROKEN ? load_tile : {_COPY[:18]}){_COPY[18:]}", "deadlock"),
}


@cache
def switched_source() -> str:
    """Return the kernel with all breakages in one source; `unit` selects the active one, see `unit_of`."""
    source = cuda_kernels.source(cuda_kernels.HOPPER_FILES).replace(
        "extern __shared__", "const int broken = unit >> 8;\nunit &= 255;\nextern __shared__"
    )
    for number, (old, new, _) in enumerate(BROKEN.values(), 1):
        assert source.count(old) == 1, old
        either = new if "BROKEN" in new else f"if (BROKEN) {{ {new}\n}} else {{ {old}\n}}\n"
        source = source.replace(old, either.replace("BROKEN", f"broken == {number}"))
    return source


def unit_of(how: str, unit: int = 1) -> int:
    """Return the argument for `unit` that breaks the kernel in this way."""
    return unit + ((1 + list(BROKEN).index(how)) << 8)
