"""A plan as a table for people."""

from __future__ import annotations

from typing import Any

_GIB = 1 << 30
_MIB = 1 << 20


def table(plan: dict[str, Any]) -> str:
    """The text of a plan (rtpjax.plan.plan.as_dict)."""
    return "\n".join([*_memory(plan), *_verdict(plan), *_compiled(plan), *_fitting(plan)])


def _memory(plan: dict[str, Any]) -> list[str]:
    memory = plan["memory_per_gpu"]
    compiled = [r for r in plan["compiled"].values() if isinstance(r, dict)]
    temporaries = (
        f"{max(r['temp_bytes'] for r in compiled) / _GIB:8.2f} GiB" if compiled else " unknown"
    )
    lines = [
        f"{plan['gpu']} x {plan['tp_size']}, on each GPU:",
        f"  memory       {memory['total_bytes'] / _GIB:8.2f} GiB",
        f"  weights      {memory['weights_bytes'] / _GIB:8.2f} GiB",
    ]
    if "cache_bytes" in memory:
        lines.append(
            f"  cache        {memory['cache_bytes'] / _GIB:8.2f} GiB"
            f"   {plan['cache_tokens']} tokens of {memory['cache_bytes_per_token']} bytes"
        )
        lines += [
            f"               {group['tokens']} where layers have a window of {group['window']}"
            for group in plan["cache_groups"][1:]
        ]
    reserved = memory["reserved_bytes"] / _GIB
    return [*lines, f"  temporaries  {temporaries}   {reserved:.2f} GiB reserved"]


def _verdict(plan: dict[str, Any]) -> list[str]:
    if plan["fits"]:
        return ["It fits."]
    lines = [f"It does not fit: {plan['problem']}"]
    if plan["instead"]:
        lines.append(f"  These fit: {', or '.join(plan['instead'])}")
    return lines


def _compiled(plan: dict[str, Any]) -> list[str]:
    lines = []
    for kind, report in plan["compiled"].items():
        if isinstance(report, str):
            lines.append(f"{kind} step: {report}")
            continue
        parts = [f"temporaries {report['temp_bytes'] / _MIB:.0f} MiB"]
        if report["ratio"] is not None:
            parts.append(f"moves {report['ratio']:.2f} x the least bytes possible")
            parts.append(f"{report['kernels_per_layer']:.0f} kernels a layer")
        if plan["tp_size"] > 1:
            parts += _communication(report)
        for name in ("unaliased", "copied", "gathered"):
            if report[name]:
                parts.append(f"{name}: {', '.join(report[name][:4])}")
        lines.append(f"{kind} step: compiles; {', '.join(parts)}")
    return lines


def _communication(report: dict[str, Any]) -> list[str]:
    """What the GPUs send each other."""

    def counted(kinds: dict[str, float]) -> str:
        return ", ".join(f"{n:g} {kind}" for kind, n in sorted(kinds.items())) or "nothing"

    layer, beside = report["collectives_per_layer"], report["collectives_beside"]
    parts = [f"{counted(layer)} a layer", f"{counted(beside)} beside the layers"]
    return parts if report["gathered"] else [*parts, "no weight is sent"]


def _fitting(plan: dict[str, Any]) -> list[str]:
    if "limits" not in plan:
        return []
    fitting = [f"{r['requests']} of {r['tokens']} tokens" for r in plan["requests"]]
    tpot = [
        f"  {r['rows']:5} {r['context']:9} {1e3 * r['tpot_s']:9.2f} {r['rows'] / r['tpot_s']:10.0f}"
        for r in plan["limits"]["tpot"]
    ]
    ttft = [f"  {r['prompt']:9} {1e3 * r['ttft_s']:9.1f}" for r in plan["limits"]["ttft"]]
    return [
        f"Requests that fit at once: {', '.join(fitting)}.",
        "Limits that bandwidth and arithmetic set; nothing here was measured:",
        "   rows   context  TPOT, ms   tokens/s",
        *tpot,
        "     prompt  TTFT, ms",
        *ttft,
    ]
