"""The text model inside of a checkpoint that also has others, of images or sound.

in the file                              in the model
config.json: text_config                 config.json
language_model.model.layers.0...         model.layers.0...     (transformers 4)
model.language_model.layers.0...         model.layers.0...     (transformers 5)
vision_tower..., multi_modal_projector   not read: text alone is served
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rtpjax.checkpoint import Checkpoint, TensorInfo
from rtpjax.models.registry import text_architectures

logger = logging.getLogger(__name__)

_TEXT = re.compile(
    r"(?:language_model\.model\.|model\.language_model\.)(?P<inner>.*)"
    r"|(?:language_model\.)?(?P<head>lm_head\..*)"
)
# What a nested config leaves to the whole one.
_SHARED = ("eos_token_id", "bos_token_id", "dtype", "torch_dtype", "quantization_config")


class TextModel:
    """A checkpoint's text model; see rtpjax.checkpoint.Checkpoint."""

    def __init__(self, source: Checkpoint, architecture: str):
        self._source = source
        self.path: Path = source.path
        self.format = source.format
        whole = source.config
        shared = {key: whole[key] for key in _SHARED if key in whole}
        self.config: dict[str, Any] = {
            **shared, **whole["text_config"], "architectures": [architecture]
        }  # fmt: skip
        self._stored = {text: name for name in source.tensors if (text := _text_name(name))}
        self.tensors: Mapping[str, TensorInfo] = {
            text: TensorInfo(text, source.tensors[name].shape, source.tensors[name].dtype)
            for text, name in self._stored.items()
        }
        self.doubled: Mapping[str, tuple[str, ...]] = {
            text: where for name, where in source.doubled.items() if (text := _text_name(name))
        }
        self.files = source.files
        others = {name.split(".")[0] for name in source.tensors if _text_name(name) is None}
        logger.warning(
            "%s: text alone is served; not loaded: %s",
            source.path,
            ", ".join(sorted(others)) or "-",
        )

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See Checkpoint."""
        return self._source.read(self._stored[name], index)


def with_text_model(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it is where all of it is a text model, else a view of that."""
    names = checkpoint.config.get("architectures") or []
    found = text_architectures().get(names[0]) if len(names) == 1 else None
    if found is None or not isinstance(checkpoint.config.get("text_config"), dict):
        return checkpoint
    return TextModel(checkpoint, found)


def _text_name(name: str) -> str | None:
    match = _TEXT.fullmatch(name)
    if match is None:
        return None
    return match["head"] or f"model.{match['inner']}"
