"""What was found on a device: each case's table, set against the limits that were measured in the same call."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.benchmark.measure import Case, Measurement
from pipelines.benchmark.report import describe_case, drop_empty, tell_machine, write_files

_HEADER = (
    "", "seconds", "runs", "× time", "TFLOP/s", "of the GEMM", "of the limit", "wrong labels", "distances", "inertia",
    "",
)  # fmt: skip
#: A squared distance is right within this share of it.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Ceilings:
    """What the device was measured to do.

    Attributes
    ----------
    float16, bfloat16 : float or None
        FLOP per second of a matrix product, sums in float32; None where no library has it.
    copy : float
        Bytes per second of a copy within its memory, read and written bytes added.
    upload : float
        Bytes per second from pinned host memory.
    """

    float16: float
    bfloat16: float | None
    copy: float
    upload: float

    def limit(self, n_flops: float, n_bytes: float) -> float:
        """Seconds that so many operations, and so many bytes from host memory beside them, take at least.

        Parameters
        ----------
        n_flops, n_bytes : float

        Returns
        -------
        float

        Examples
        --------
        >>> Ceilings(float16=8e14, bfloat16=None, copy=4e12, upload=5e10).limit(n_flops=8e14, n_bytes=1e11)
        2.0
        """
        return max(n_flops / self.float16, n_bytes / self.upload)


@dataclass(frozen=True)
class Check:
    """How a participant's answer compares with all distances in float64.

    Attributes
    ----------
    n_rows : int
        Rows that were looked at.
    n_wrong : int
        Of those, rows with a centroid nearer than the one they are labeled with.
    error : float or None
        Largest share by which a squared distance is off; None where none were given.
    """

    n_rows: int
    n_wrong: int
    error: float | None = None


@dataclass(frozen=True)
class DeviceCase:
    """A case, with what it takes to set its times in proportion.

    Attributes
    ----------
    case : Case
    n_flops : float
        Operations of what was timed, 2nkd per pass.
    n_bytes : float
        Bytes that have to come from host memory meanwhile.
    checks : dict of str to Check
        By participant.
    """

    case: Case
    n_flops: float
    n_bytes: float = 0.0
    checks: dict[str, Check] = field(default_factory=dict)


def table(found: DeviceCase, ceilings: Ceilings) -> list[tuple[str, ...]]:
    """Header and lines of a case's table, without columns in which there is nothing.

    Parameters
    ----------
    found : DeviceCase
    ceilings : Ceilings

    Returns
    -------
    list of tuple of str
    """
    return drop_empty(_HEADER, [_cells(found, measured, ceilings) for measured in found.case.measurements])


def _cells(found: DeviceCase, measured: Measurement, ceilings: Ceilings) -> tuple[str, ...]:
    seconds, ratio, inertia = measured.median, found.case.ratio(measured), measured.median_inertia
    usable = math.isfinite(seconds) and seconds > 0 and found.n_flops > 0
    limit = ceilings.limit(found.n_flops, found.n_bytes)
    check = found.checks.get(measured.who)
    return (
        measured.who,
        f"{seconds:.4g}",
        str(len(measured.seconds)),
        "" if ratio is None else f"{ratio:.2f}",
        f"{found.n_flops / seconds / 1e12:.1f}" if usable else "",
        f"{found.n_flops / seconds / ceilings.float16:.1%}" if usable else "",
        f"{limit / seconds:.1%}" if usable and found.n_bytes else "",
        "" if check is None else f"{check.n_wrong} of {check.n_rows}",
        "" if check is None or check.error is None else _tell_error(check.error),
        "" if inertia is None else f"{inertia:.6g}",
        measured.note,
    )


def _tell_error(error: float) -> str:
    # NaN is within nothing.
    return f"within {error:.0e}" if error <= TOLERANCE else f"off by {error:.0e}"


@dataclass(frozen=True)
class DeviceResults:
    """All of a run.

    Attributes
    ----------
    machine, device : dict
        From `describe_machine` and `describe_device`.
    ceilings : Ceilings
    absent : tuple of str
        Peers that take no part, and why.
    command : str
    date : str
    cases : tuple of DeviceCase
    """

    machine: dict[str, Any]
    device: dict[str, Any]
    ceilings: Ceilings
    absent: tuple[str, ...]
    command: str
    date: str
    cases: tuple[DeviceCase, ...] = ()


def to_markdown(results: DeviceResults) -> str:
    """Write the results as a page.

    Parameters
    ----------
    results : DeviceResults

    Returns
    -------
    str
    """
    ceilings, device = results.ceilings, results.device
    bfloat16 = "not measured" if ceilings.bfloat16 is None else f"{ceilings.bfloat16 / 1e12:.0f} TFLOP/s"
    lines = [
        "# Benchmark on a GPU",
        "",
        f"{device['name']}, {device['memory_gib']} GiB, compute capability {device['capability']}, "
        f"driver {device['driver']}, CUDA {device['cuda']}. {tell_machine(results.machine)}",
        "",
        f"{results.date}, by `{results.command}`.",
        "",
        f"Measured in the same call: matrix product {ceilings.float16 / 1e12:.0f} TFLOP/s in float16, {bfloat16} in "
        f"bfloat16 (8192³, random numbers); copy within the device {ceilings.copy / 1e12:.2f} TB/s, read and written; "
        f"from pinned host memory {ceilings.upload / 1e9:.1f} GB/s.",
        "",
        f"Not here: {', '.join(results.absent) or 'none'}. Seconds are medians of runs in turns after a warm-up, timed "
        "by device synchronization; × is in proportion to the line that says 1.00. A pass is 2nkd operations, and the "
        "GEMM is the product in float16; the limit is the longer of these operations at its rate and of the bytes that "
        "must be sent at the rate of the transfer. Labels and distances are compared with all distances in float64; "
        f"distances should be right within {TOLERANCE:.0e} of their size.",
    ]
    for found in results.cases:
        lines += describe_case(found.case, table(found, ceilings))
    return "\n".join(lines) + "\n"


def write_results(results: DeviceResults, folder: Path) -> None:
    """Write ``gpu.json`` and ``gpu.md``.

    Parameters
    ----------
    results : DeviceResults
    folder : Path
        Made if need be.
    """
    write_files(asdict(results), to_markdown(results), folder / "gpu")
