"""The table at the end, and lab.md: what was measured beside what was predicted."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rtpjax import gpus
from rtpjax.lab.decisions import decided

_IS_MORE_BETTER = ("GB/s", "TFLOP/s", "tok/s")


@dataclasses.dataclass(frozen=True)
class StageEnd:
    """How a stage ended.

    Attributes:
        name: Which.
        outcome: ok, left out, or what happened to it.
        seconds: It took.
    """

    name: str
    outcome: str
    seconds: float


@functools.cache
def _predictions() -> Mapping[str, Any]:
    return tomllib.loads((Path(__file__).parent / "predictions.toml").read_text())


def predicted(gpu: str | None, model: str, id: str) -> tuple[float, float] | None:
    """The range that a figure was predicted in, for a GPU by its file's name and a model."""
    known = _predictions()
    if model != known["model"] or gpu is None:
        return None
    found = known.get(gpu, {}).get(id)
    return None if found is None else (found[0], found[1])


def verdict(value: float, expected: tuple[float, float] | None, unit: str) -> str:
    """How a figure stands to its prediction."""
    if expected is None:
        return ""
    least, most = expected
    if least <= value <= most:
        return "as predicted"
    times, is_over = (value / most, True) if value > most else (least / value, False)
    is_better = is_over == (unit in _IS_MORE_BETTER)
    return f"MISSED: {'better' if is_better else 'worse'} by {times:.2f}x"


def advice(id: str) -> str | None:
    """Where to look after a miss."""
    found = _predictions()["if_missed"]
    return next((text for start, text in found.items() if id.startswith(start)), None)


def gpu_of(lines: Iterable[Mapping[str, Any]]) -> str | None:
    """The file's name of the GPU that the results are of; None where it has none."""
    kinds = [line["kind"] for line in lines if line.get("note") == "device"]
    known = {gpus.load(name).full_name: name for name in gpus.names()}
    return known.get(kinds[-1]) if kinds else None


def rows(lines: Sequence[Mapping[str, Any]], model: str) -> list[tuple[str, ...]]:
    """name, measured, predicted, data sheet, verdict of each figure."""
    gpu, found = gpu_of(lines), []
    for line in lines:
        if "value" in line:
            expected = predicted(gpu, model, line["id"])
            span = "" if expected is None else f"{expected[0]:g} to {expected[1]:g}"
            limit = f"{line['limit']:.4g}" if "limit" in line else ""
            measured = f"{line['value']:.4g} {line['unit']}"
            said = verdict(line["value"], expected, line["unit"])
            found.append((line["id"], measured, span, limit, said))
        elif "error" in line:
            found.append((line["id"], "FAILED", "", "", line["error"][:120]))
    return found


_MINIATURE = "Nothing: these are figures of a miniature on the CPU.\n"
_HEADER = ("figure", "measured", "predicted", "data sheet", "")


def table(lines: Sequence[Mapping[str, Any]], model: str) -> str:
    """For the terminal."""
    cells = [_HEADER, *rows(lines, model)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def page(
    lines: Sequence[Mapping[str, Any]],
    ends: Sequence[StageEnd],
    model: str,
    *,
    command: str,
    is_small: bool = False,
) -> str:
    """lab.md."""
    found = rows(lines, model)
    missed = [row for row in found if row[4].startswith("MISSED")]
    notes = [(line["note"], line) for line in lines if "note" in line]
    parts = [
        "# A visit of the lab\n",
        f"`{command}`\n",
        f"Model: {model}, random weights.",
        f"GPU: {gpu_of(lines) or 'none that rtpjax/gpus describes'}.\n",
        *(f"- {name}: {_facts(line)}" for name, line in notes),
        "\n## Stages\n",
        *_markdown(
            ("stage", "outcome", "seconds"),
            [(end.name, end.outcome, f"{end.seconds:.0f}") for end in ends],
        ),
        "\n## Measured beside predicted\n",
        *_markdown(_HEADER, found),
        "\n## Predictions that missed\n",
        *([f"- {row[0]}: {row[4]}. {advice(row[0]) or ''}".rstrip() for row in missed] or ["none"]),
        "\n## What follows\n",
        *([_MINIATURE] if is_small else []),
        *(f"- {question}\n  **{answer}**" for question, answer in decided(values_of(lines))),
    ]
    return "\n".join(parts) + "\n"


def values_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """All figures by name, and their limits as `NAME limit`."""
    values = {}
    for line in lines:
        if "value" in line:
            values[line["id"]] = line["value"]
            if "limit" in line:
                values[f"{line['id']} limit"] = line["limit"]
    return values


def _facts(line: Mapping[str, Any]) -> str:
    shown = {k: v for k, v in line.items() if k not in ("note", "stage", "at")}
    return "; ".join(f"{key} {' '.join(str(value).split())}" for key, value in shown.items())


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *body]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
