"""What test_process.py has an engine's process call. What needs jax imports it by itself."""

from __future__ import annotations

import os
import time
from importlib import import_module

from rtpjax.engine.process_main import Opened
from rtpjax.errors import CheckpointError


def _opened(load) -> Opened:
    return Opened("a description", lambda _: load())


def open_null() -> Opened:
    def load():
        tokenizer = import_module("tests.rtpjax.engine.tiny").tokenizer()
        return import_module("bench.null_runner").make_engine(tokenizer, 16)

    return _opened(load)


def fail_to_open() -> Opened:
    raise CheckpointError("no weights here")


def fail_to_load() -> Opened:
    def load():
        raise CheckpointError("a tensor is missing")

    return _opened(load)


def fail_unforeseen() -> Opened:
    return _opened(lambda: 1 / 0)


def die_while_loading() -> Opened:
    return _opened(lambda: os._exit(3))


def load_for_ever() -> Opened:
    return _opened(lambda: time.sleep(60))
