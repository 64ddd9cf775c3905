"""GPUs by name: the peak rates of their data sheets, scaled to what the nearest-centroid search reaches."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from hkm_dask.errors import InputError
from hkm_dask.planning.rates import H200, Rates

#: Share of the specified peak that a large matrix product reaches: 790 of 989 TFLOP/s, measured on an H200.
_PRODUCT_SHARE = 0.8
#: Memory bandwidth is not scaled: as on an H200, the data sheet's rate is used.


@dataclass(frozen=True)
class Gpu:
    """One GPU model, with its data sheet's peak rates without sparsity."""

    #: Name and data sheet.
    name: str
    source: str
    product: float  # bfloat16 tensor-core operations per second
    double: float  # float64 operations per second, without tensor cores
    memory: float  # bytes per second
    size: int  # bytes of memory
    link: float  # bytes per second from the host

    @property
    def rates(self) -> Rates:
        """Rates of one GPU with 16 processors, scaled from those of an H200; predicted, not measured."""
        return replace(
            H200, product=_PRODUCT_SHARE * self.product, measured=H200.measured * self.double / 34e12,
            memory=self.memory, link=self.link,
        )  # fmt: skip


#: By their names for `--gpu`. Data sheets: nvidia.com/en-us/data-center/ h200, h100, a100, l40s, l4.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200", "NVIDIA H200 SXM", 989e12, 34e12, 4.8e12, 141 * 10**9, 55e9),
        Gpu("h100", "NVIDIA H100 SXM 80 GB", 989e12, 34e12, 3.35e12, 80 * 10**9, 55e9),
        Gpu("a100", "NVIDIA A100 SXM 80 GB", 312e12, 9.7e12, 2.039e12, 80 * 10**9, 25e9),
        Gpu("a100-40gb", "NVIDIA A100 SXM 40 GB", 312e12, 9.7e12, 1.555e12, 40 * 10**9, 25e9),
        Gpu("l40s", "NVIDIA L40S", 362e12, 1.4e12, 0.864e12, 48 * 10**9, 25e9),
        Gpu("l4", "NVIDIA L4", 121e12, 0.47e12, 0.3e12, 24 * 10**9, 25e9),
    )
}


def find_gpu(text: str) -> tuple[Gpu, int]:
    """Parse the name and number of GPUs.

    >>> gpu, n = find_gpu("h200:8")
    >>> gpu.name, n, find_gpu("A100")[1]
    ('h200', 8, 1)
    >>> find_gpu("h20:0")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: gpu='h20:0' should be NAME or NAME:NUMBER, of h200, ...; did you mean h200?
    """
    name, _, number = text.strip().lower().partition(":")
    if name in GPUS and (not number or (number.isdecimal() and int(number) > 0)):
        return GPUS[name], int(number or 1)
    near = difflib.get_close_matches(name, GPUS, n=1)
    remedy = f"did you mean {near[0]}?" if near else "give one of these, or measured --rates"
    raise InputError(f"gpu={text!r} should be NAME or NAME:NUMBER, of {', '.join(GPUS)}; {remedy}")
