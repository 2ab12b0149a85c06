"""The command `rtpjax`: serve, replicas, convert, plan, check, lab, bench, chat."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

USAGE = """usage: rtpjax COMMAND ...

  serve     serve a model over the OpenAI API
  replicas  serve it with several replicas, on Ray Serve
  convert   convert a checkpoint (Hugging Face folder or .gguf) to safetensors or orbax
  plan      what a model needs and can reach on a GPU; needs no GPU
  check     compare kernels and a model on this machine's GPU with what they should compute
  lab       measure everything that a short visit to a GPU can tell
  bench     measure a server or the engine
  chat      talk to a running server in the terminal

rtpjax COMMAND --help says more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    run = _commands().get(command)
    if run is None:
        print(f"rtpjax: there is no command {command!r}.\n{USAGE}", file=sys.stderr)
        return 2
    return run(rest)


def _commands() -> dict[str, Callable[[Sequence[str]], int]]:
    return {
        "serve": _serve,
        "replicas": _replicas,
        "convert": _convert,
        "plan": _plan,
        "check": _check,
        "lab": _lab,
        "bench": _bench,
        "chat": _chat,
    }


# Imported when called: each brings libraries that the others do not need.
def _serve(argv: Sequence[str]) -> int:
    from rtpjax.start_server import main

    return main(argv)


def _replicas(argv: Sequence[str]) -> int:
    from rtpjax.replicas import main

    return main(argv)


def _convert(argv: Sequence[str]) -> int:
    from checkpoints_conv.__main__ import main

    return main(argv)


def _plan(argv: Sequence[str]) -> int:
    from checkpoints_conv.readers import open_checkpoint
    from rtpjax.plan.__main__ import main

    return main(argv, read_config=lambda path: open_checkpoint(path).config)


def _check(argv: Sequence[str]) -> int:
    from checkpoints_conv.readers import open_checkpoint
    from rtpjax.check.__main__ import main
    from rtpjax.served_model import resolve_checkpoint
    from rtpjax.start_server import read_settings

    settings = read_settings((), os.environ)
    cache = settings["RTPJAX_CACHE"].expanduser()
    return main(
        argv,
        find_model=lambda named, load_format: resolve_checkpoint(
            named or settings["CHECKPOINT_PATH"], cache, load_format or settings["LOAD_FORMAT"]
        ),
        open_checkpoint=open_checkpoint,
    )


def _lab(argv: Sequence[str]) -> int:
    from rtpjax.lab.cli import main
    from rtpjax.start_server import read_settings

    settings = read_settings((), os.environ)
    return main(argv, cache=settings["RTPJAX_CACHE"].expanduser())


def _bench(argv: Sequence[str]) -> int:
    from bench.cli import main

    return main(argv, prog="rtpjax bench")


def _chat(argv: Sequence[str]) -> int:
    from server.chat import main

    return main(argv)


if __name__ == "__main__":
    sys.exit(main())
