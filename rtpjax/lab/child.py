"""The process of one stage: python -m rtpjax.lab.child REQUEST, a JSON object from the driver."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rtpjax.errors import ConfigError
from rtpjax.lab import record
from rtpjax.lab.stage import Lab
from rtpjax.lab.stages import STAGES, run_of


def main() -> int:
    """Imports, waits for the word, and runs the stage; 1 if it could not run at all."""
    request = json.loads(sys.argv[1])
    recorder = record.Recorder(Path(request["results"]), request["stage"], request["began"])
    try:
        run = run_of(request["stage"])
        if not sys.stdin.readline():
            return 0  # the driver has no time for it
        lab = Lab(
            record=recorder,
            scratch=Path(request["scratch"]),
            cache=Path(request["cache"]),
            model=Path(request["model"]),
            gpu=request["gpu"],
            is_small=request["is_small"],
        )
        _keep_programs(lab.cache)
        if STAGES[request["stage"]].uses == "jax" and not lab.is_small:
            _require_gpu()
        run(lab)
    except Exception as error:  # noqa: BLE001  the last word of a stage, in place of a traceback
        print(record.explain(error), flush=True)
        return 1
    return 0


def _require_gpu() -> None:
    import jax

    if jax.default_backend() != "gpu":
        raise ConfigError(
            f"JAX {jax.__version__} finds no GPU, though nvidia-smi does: install jax[cuda13] "
            "(driver 580 or later) or jax[cuda12] (525 or later) of that version."
        )


def _keep_programs(folder: Path) -> None:
    """Stages that compile the same find it compiled."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    sys.exit(main())
