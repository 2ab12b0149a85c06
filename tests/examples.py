"""How many examples property tests draw: the same ones in CI, new ones in nightly runs."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck
from hypothesis.database import DirectoryBasedExampleDatabase

NIGHTLY_EXAMPLES = 2000


def register_profiles() -> None:
    """Registers `ci` and `nightly`, and loads `ci`; `--hypothesis-profile=nightly` loads the other.

    A nightly run prints the seed that it draws with. What it finds to fail is kept, beside how to
    reproduce it in a line of its report, and is tried first the next time.
    """
    common = {"deadline": None, "print_blob": True}
    hypothesis.settings.register_profile(
        "ci", derandomize=True, max_examples=40, database=None, **common
    )
    root = Path(os.environ.get("RTPJAX_CACHE", "~/.cache/rtpjax")).expanduser()
    hypothesis.settings.register_profile(
        "nightly",
        max_examples=NIGHTLY_EXAMPLES,
        database=DirectoryBasedExampleDatabase(root / "hypothesis"),
        suppress_health_check=[HealthCheck.too_slow],
        **common,
    )
    hypothesis.settings.load_profile("ci")


def num_examples(ci: int, nightly: int = NIGHTLY_EXAMPLES) -> int:
    """max_examples of a test whose examples cost less than most (or more) under each profile."""
    is_nightly = hypothesis.settings.get_current_profile_name() == "nightly"
    return nightly if is_nightly else ci
