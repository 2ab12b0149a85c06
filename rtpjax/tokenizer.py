"""Loads the tokenizer of a checkpoint, and finds the tokens that end a sequence."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rtpjax.checkpoint import read_config
from rtpjax.dummy_checkpoint import is_config_file
from rtpjax.dummy_tokenizer import DummyTokenizer, dummy_tokenizer
from rtpjax.errors import CheckpointError
from rtpjax.gguf_file import only_gguf, read_gguf
from rtpjax.gguf_tokenizer import tokenizer_from_gguf
from rtpjax.lfs import refuse_pointers

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
# What transformers reads beside them.
_READ_WITH_IT = (
    *_TOKENIZER_FILES,
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "chat_template.*",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder or a .gguf file. Nothing is downloaded, no code there is run.

    Args:
        path: A folder with tokenizer files, a .gguf file, or a folder with one; or the config.json
            of a model of random weights: the tokenizer beside it, or else one made for it.

    Raises:
        CheckpointError: There is no tokenizer, or it cannot be read.
    """
    path = Path(path)
    if path.suffix == ".gguf" and path.is_file():
        return tokenizer_from_gguf(read_gguf(path))
    if is_config_file(path):
        if not _has_tokenizer(path.parent):
            return _made_for(path)
        path = path.parent
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder to load a tokenizer from.")
    if not _has_tokenizer(path):
        gguf = only_gguf(path)
        if gguf is not None:
            return tokenizer_from_gguf(read_gguf(gguf))
        raise CheckpointError(
            f"{path}: there is no tokenizer (none of {', '.join(_TOKENIZER_FILES)}). "
            "Set TOKENIZER_PATH to the folder that has it."
        )
    refuse_pointers(file for pattern in _READ_WITH_IT for file in sorted(path.glob(pattern)))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise CheckpointError(f"{path}: the tokenizer cannot be loaded: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(
            f"{path}: {type(tokenizer).__name__} runs in Python only; a tokenizer.json is needed. "
            "AutoTokenizer.from_pretrained(SRC).save_pretrained(DST) writes one for most models."
        )
    _add_processor_template(path, tokenizer)
    return tokenizer


def _add_processor_template(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Takes the template of `chat_template.json`, which transformers reads for processors only.

    Checkpoints of models that see images have it; where the tokenizer has templates of its own,
    those are meant for text.
    """
    file = folder / "chat_template.json"
    if not file.is_file():
        return
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
        if isinstance(found, list):
            found = {entry["name"]: entry["template"] for entry in found}
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{file}: expected an object with a chat_template. Mend or remove the file."
        ) from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = found
    elif found != tokenizer.chat_template:
        logger.warning(
            "%s is left out: the tokenizer's own chat template is used for text", file.name
        )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in _TOKENIZER_FILES)


def _made_for(config_file: Path) -> DummyTokenizer:
    vocab_size = read_config(config_file).get("vocab_size")
    if not isinstance(vocab_size, int):
        raise CheckpointError(
            f"{config_file}: vocab_size must be a positive integer, found {vocab_size!r}."
        )
    return dummy_tokenizer(vocab_size)


def eos_token_ids(
    path: str | Path, config: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """The tokens that end a sequence: those that generation_config.json, config and tokenizer name.

    All of them count: chat checkpoints differ in which of the three has the end of a turn, and none
    names a token that may stand inside of an answer.

    Args:
        path: The checkpoint's folder or file; a config.json of random weights.
        config: The dict of its config.json.
        tokenizer: Its tokenizer.
    """
    ids: list[int] = []
    if isinstance(tokenizer, DummyTokenizer):
        return tuple(_ids(tokenizer.eos_token_id))
    ids.extend(_ids(read_generation_config(path).get("eos_token_id")))
    ids.extend(_ids(config.get("eos_token_id")))
    ids.extend(_ids(tokenizer.eos_token_id))
    return tuple(dict.fromkeys(ids))


def read_generation_config(path: str | Path) -> dict[str, Any]:
    """The generation_config.json beside a checkpoint; {} if there is none.

    Args:
        path: The checkpoint's folder or file; a config.json of random weights.

    Raises:
        CheckpointError: It is no JSON object.
    """
    path = Path(path)
    file = (path.parent if is_config_file(path) else path) / "generation_config.json"
    if not file.is_file():
        return {}
    refuse_pointers([file])
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: expected a JSON object.")
    return config


def _ids(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, list):
        yield from value
