"""Every kernel against its plain twin, as `rtpjax check` does it."""

from __future__ import annotations

from collections import Counter

from pallas_kernels.registry import current_target
from rtpjax.check.kernels import check_kernels
from rtpjax.lab.stage import Lab

_SMALL = "rotate"


def run(lab: Lab) -> None:
    counts: Counter[str] = Counter()
    for result in check_kernels(current_target(), every_shape=False, only=lab.pick("", _SMALL)):
        counts[result.status] += 1
        id = f"kernels.{result.what}.{result.case}"
        if result.status in ("FAILED", "not run"):
            lab.record.failed(id, result.detail)
        elif result.status == "ok" and result.error is not None:
            more = {"compile_s": result.compile_s, "run_us": result.run_us}
            lab.record.measured(id, result.error, "of what is tolerated", **more)
    lab.record.note("kernels", **counts)
    lab.record.measured("kernels.ok", counts["ok"], "cases")
