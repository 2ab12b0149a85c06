"""How checkpoints store quantized matrices: every module of this folder that defines ENCODING.

An encoding reads `quantization_config` of config.json once, says which format
(rtpjax.models.weight_formats) each matrix has, which tensors stand for it, and makes the format's
arrays of them, for any outputs and any whole groups of inputs.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from rtpjax.errors import CheckpointError
from rtpjax.models.encodings.encoding import Encoding, Options, StoredMatrix, StoredPart

__all__ = ["Encoding", "Options", "StoredMatrix", "StoredPart", "encoding_of", "encodings"]


@functools.cache
def encodings() -> Mapping[str, type[Encoding]]:
    """All encodings by the quant_method that config.json has for them."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        encoding = getattr(importlib.import_module(f"{__name__}.{info.name}"), "ENCODING", None)
        if encoding is not None:
            found[encoding.method] = encoding
    return found


def encoding_of(config: Mapping[str, Any]) -> Encoding | None:
    """The encoding that a config.json names, None if its weights are plain.

    Raises:
        CheckpointError: Nothing here reads it.
    """
    options = config.get("quantization_config")
    if not options:
        return None
    method = str(options.get("quant_method")) if isinstance(options, Mapping) else "none"
    if method not in encodings():
        raise CheckpointError(
            f"config.json: weights quantized by {method!r} are not supported; supported are "
            f"{', '.join(sorted(encodings()))}, and GGUF files. Or use the checkpoint that they "
            "were made from, and QUANTIZATION."
        )
    return encodings()[method](Options(options), config)
