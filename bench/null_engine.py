"""A server whose device answers at once: what is left is the host's work (bench/http_host.py).

It runs as a script under any checkout that PYTHONPATH names, so that two can be compared.
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib import import_module
from typing import Any

# Beside this file, whatever checkout is served.
_RUNNER = "null_runner"


def _make_async_engine(tokenizer_path: str, num_rows: int) -> Any:
    """As a server of this checkout has it: in a process of its own if it can be there."""
    from rtpjax.engine.async_engine import AsyncLLMEngine

    try:
        from rtpjax.engine.process import EngineProcess
    except ImportError:  # an older checkout
        runner = import_module(_RUNNER)
        tokenizer = runner.load_tokenizer(tokenizer_path)
        load: Any = partial(runner.make_engine, tokenizer, num_rows)
        return AsyncLLMEngine(load, tokenizer, "null")
    link = EngineProcess(_RUNNER, "open_null", tokenizer_path, num_rows)
    return AsyncLLMEngine(link, link.describe(), "null")


def main() -> None:
    """Serves, and prints the URL once it is ready."""
    from server.config import ServerConfig
    from server.lifecycle import run

    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer")
    parser.add_argument("num_rows", type=int)
    args = parser.parse_args()
    run(
        _make_async_engine(args.tokenizer, args.num_rows),
        ServerConfig(host="127.0.0.1", port=0),
        on_ready=lambda url: print(url, flush=True),
    )


if __name__ == "__main__":
    main()
