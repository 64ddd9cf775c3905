"""Figure 2: density of 5000 centroids in one dimension, for distances to the powers 2, 4 and 8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from hkm_dask.events import emit
from pipelines.simulation.distortion import fit_line
from pipelines.simulation.drawing import BLUE, INK, ORANGE, QUIET, empty_figure, plain, write
from pipelines.simulation.measures import Spread, entropy, format_spread, spread, total_variation
from pipelines.simulation.mixtures import LINE_RANGE, line_law, line_mixture

POWERS = (2, 4, 8)
N_CLUSTERS = 5000
N_BINS = 100
MAX_ITER = 100_000  # never reached: a hundred or so are enough
STARTS = ("k-means++", "random")
EDGES = np.linspace(*LINE_RANGE, N_BINS + 1)
CUBE_ROOT = line_law(EDGES, 1 / 3)


def run(out: Path, seeds: int, *, share: float = 1.0) -> tuple[dict[str, Any], list[Path]]:
    """Cluster the mixture for each s, seed and initialization; plot the histograms of the first seed.

    Parameters
    ----------
    out : Path
        Folder for the plots.
    seeds : int
        Number of seeds, of data and initialization.
    share : float, default=1.0
        Share of the paper's numbers and centroids to use.

    Returns
    -------
    numbers : dict
        By initialization, then s.
    pictures : list of Path
    """
    results: dict[tuple[str, int], list[dict[str, float]]] = {(start, s): [] for start in STARTS for s in POWERS}
    shown: dict[int, NDArray[np.int64]] = {}
    data = np.zeros(N_BINS, np.int64)
    for seed in range(seeds):
        x = line_mixture(seed, share=share)
        for start, s in results:
            fit = fit_line(x, round(share * N_CLUSTERS), s=s, init=start, max_iter=MAX_ITER, seed=seed)
            counts = np.histogram(fit.centroids, EDGES)[0]
            results[start, s].append(
                {
                    "tv_to_cube_root": total_variation(counts, CUBE_ROOT),
                    "tv_to_own_law": total_variation(counts, line_law(EDGES, 1 / (1 + s))),
                    "entropy": entropy(counts),
                    "distortion": fit.distortion,
                    "n_iter": fit.n_iter,
                    "converged": fit.converged,
                }
            )
            if seed == 0 and start == "k-means++":
                shown[s], data = counts, np.histogram(x, EDGES)[0]
            n_done = seed * len(results) + list(results).index((start, s)) + 1
            emit("progress", stage="figure 2", done=n_done, total=seeds * len(results))
    numbers = {
        "n_clusters": round(share * N_CLUSTERS),
        "n_bins": N_BINS,
        "seeds": seeds,
        "entropy_of_laws": {f"p^(1/{1 + s})": entropy(line_law(EDGES, 1 / (1 + s))) for s in (0, *POWERS)},
        "starts": {start: {str(s): _over_seeds(results[start, s]) for s in POWERS} for start in STARTS},
    }
    return numbers, write(_draw(data, shown, numbers), out, "figure2")


def summarize(numbers: dict[str, Any]) -> str:
    """Format the numbers as text.

    Parameters
    ----------
    numbers : dict
        From `run`.

    Returns
    -------
    str
    """
    lines = [f"{'start':12}{'s':>2}   {'to p^(1/3)':16} {'to p^(1/(1+s))':16} {'entropy':16} iterations"]
    for start, by_power in numbers["starts"].items():
        for s, one in by_power.items():
            settled = "" if one["converged"] else ", not converged"
            lines.append(
                f"{start:12}{s:>2}   {format_spread(one['tv_to_cube_root'])}  {format_spread(one['tv_to_own_law'])}"
                f"  {format_spread(one['entropy'])}  {one['n_iter']['mean']:.0f}{settled}"
            )
    laws = ", ".join(f"{law} {value:.4f}" for law, value in numbers["entropy_of_laws"].items())
    return "\n".join([*lines, f"total variation over {numbers['n_bins']} bins; entropy of the laws: {laws}"])


def _over_seeds(results: list[dict[str, float]]) -> dict[str, Spread | bool]:
    names = [name for name in results[0] if name != "converged"]
    spreads: dict[str, Spread | bool] = {name: spread([one[name] for one in results]) for name in names}
    return {**spreads, "converged": all(one["converged"] for one in results)}


def _draw(data: NDArray[np.int64], shown: dict[int, NDArray[np.int64]], numbers: dict[str, Any]) -> Figure:
    figure = empty_figure(1100, 760)
    panels = figure.subplots(1 + len(shown), 1, sharex=True)
    _panel(panels[0], data, QUIET, "the data, as dense as $p$")
    for axes, (s, counts) in zip(panels[1:], shown.items(), strict=True):
        _panel(axes, counts, BLUE, f"centroids for $|x-y|^{s}$")
        _outline(axes, CUBE_ROOT, ORANGE, "solid", "law $p^{1/3}$")
        if s > 2:
            _outline(axes, line_law(EDGES, 1 / (1 + s)), INK, (0, (2, 1.5)), f"law $p^{{1/{1 + s}}}$")
        one = numbers["starts"]["k-means++"][str(s)]
        said_of_it = f"entropy {one['entropy']['values'][0]:.3f}"
        axes.annotate(said_of_it, (0.205, 0.42), xycoords="axes fraction", fontsize=10, color=QUIET, va="top")
    top = 1.1 * max(float((counts / counts.sum()).max()) for counts in shown.values())
    for axes in panels[1:]:
        axes.set_ylim(0, top)
        axes.legend(loc="upper left", bbox_to_anchor=(0.195, 0.98), frameon=False, fontsize=10)  # an empty area
    panels[-1].set_xlim(*LINE_RANGE)
    figure.supylabel(f"share in each of {N_BINS} bins", color=QUIET, fontsize=10)
    return figure


def _panel(axes: Axes, counts: NDArray[np.int64], color: str, title: str) -> None:
    axes.stairs(counts / counts.sum(), EDGES, fill=True, color=color, alpha=0.45)
    axes.annotate(title, (0.005, 0.94), xycoords="axes fraction", fontsize=12, color=INK, va="top")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    plain(axes)


def _outline(axes: Axes, law: NDArray[np.float64], color: str, style: Any, label: str) -> None:
    axes.stairs(law, EDGES, color=color, linewidth=1.6, linestyle=style, label=label, baseline=None)
