"""The picture of one serve run."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.stats import RequestRecord, throughput_over_time

COLOR = "#1f5fa8"
MARK_COLOR = "#b3401f"


def plot_run(path: str, records: Sequence[RequestRecord], title: str) -> None:
    """Writes ttft and tpot as cumulative shares, and throughput over time."""
    done = [record for record in records if record.error is None]
    num_errors = len(records) - len(done)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 6.5), layout="constrained")
        axes = figure.subplot_mosaic([["ttft", "tpot"], ["throughput", "throughput"]])
        _plot_cdf(axes["ttft"], "ttft (ms)", [record.ttft_s for record in done])
        _plot_cdf(axes["tpot"], "tpot (ms per token)", [record.tpot_s for record in done])
        _plot_throughput(axes["throughput"], records)
        errors = f", {num_errors} failed (not shown)" if num_errors else ""
        figure.suptitle(f"{title}: {len(records)} requests{errors}")
        figure.savefig(path, dpi=120)


def _plot_cdf(axes: Axes, label: str, values_s: Sequence[float | None]) -> None:
    """A step for each request: nothing is smoothed, and a tail of one request looks like one."""
    values = np.sort([1e3 * value for value in values_s if value is not None])
    axes.set_xlabel(label)
    axes.set_ylabel("share of requests")
    axes.set_ylim(0, 1.02)
    if not len(values):
        axes.text(0.5, 0.5, "nothing measured", ha="center", transform=axes.transAxes)
        return
    axes.ecdf(values, color=COLOR, linewidth=1.8)
    # From 0 on, so that a narrow spread does not look like a wide one.
    axes.set_xlim(0, values[-1] * 1.08)
    for percent in (50, 90, 99):
        value = float(np.percentile(values, percent))
        axes.plot(value, percent / 100, "o", color=MARK_COLOR, markersize=5)
    marks = [f"p{p}  {np.percentile(values, p):.1f} ms" for p in (50, 90, 99)]
    # A cumulative curve leaves the lower right empty, but for a narrow spread at the very right.
    axes.text(
        0.85,
        0.08,
        "\n".join(marks),
        ha="right",
        color=MARK_COLOR,
        transform=axes.transAxes,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )
    axes.grid(alpha=0.25)


def _plot_throughput(axes: Axes, records: Sequence[RequestRecord]) -> None:
    edges, rates = throughput_over_time(records, bin_s=_bin_s(records))
    axes.set_xlabel("time since the first request (s)")
    axes.set_ylabel("output tokens/s")
    axes.grid(alpha=0.25)
    if not len(rates):
        return
    axes.stairs(rates, edges, color=COLOR, fill=True, alpha=0.3)
    axes.stairs(rates, edges, color=COLOR, linewidth=1.5)
    mean = float(np.sum(rates * np.diff(edges)) / edges[-1])
    axes.axhline(mean, color=MARK_COLOR, linewidth=1.2, linestyle="--")
    axes.set_ylim(0, float(rates.max()) * 1.15)
    axes.set_xlim(0, edges[-1])
    axes.set_title(
        f"mean {mean:.0f} tokens/s (dashed), bins of {edges[1] - edges[0]:.2g} s",
        loc="left",
        fontsize=10,
        color=MARK_COLOR,
    )


def _bin_s(records: Sequence[RequestRecord]) -> float:
    """About forty bins, of a round length."""
    duration_s = max(r.end_s for r in records) - min(r.start_s for r in records)
    return next((s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30) if duration_s / s <= 40), 60.0)
