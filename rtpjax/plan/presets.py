"""Models whose config.json stands here, for the check and for `rtpjax plan NAME`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "models"


def names() -> list[str]:
    """The models that are there."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def path(name: str) -> Path:
    """Where a model's config.json is."""
    return _FOLDER / f"{name.lower()}.json"


def load(name: str) -> dict[str, Any]:
    """A model's config.json; `_source` in it says where it comes from."""
    return json.loads(path(name).read_text())
