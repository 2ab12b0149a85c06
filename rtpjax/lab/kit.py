"""A folder with all that the lab needs on a machine without network, and the proof that it is all.

    python -m rtpjax.lab.kit build KIT              what machine.toml lacks, our sources, run.sh
    python -m rtpjax.lab.kit test KIT [STAGES]      in an environment that has only what it lists

    KIT/run.sh      any command of rtpjax; bash run.sh lab --out OUT
       /src         our packages, and the tests that the lab runs
       /wheels      unpacked to KIT/site at the first start

Which wheels is computed: pip resolves our requirements for that machine, and what it has is left
out. No tokenizer is carried: random weights bring one (rtpjax.dummy_tokenizer).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MOST_BYTES = 40 << 20
_MIB = 1 << 20
_PACKAGES = ("rtpjax", "pallas_kernels", "server", "checkpoints_conv", "bench")
_TESTS = ("tests/conftest.py", "tests/golden", "tests/rtpjax/models", "tests/rtpjax/engine/tiny.py")
_PIP_OPTIONS = ("--disable-pip-version-check", "--retries", "1", "--timeout", "20")


class KitError(Exception):
    """The kit cannot be made, or does not work; the message is one line that says why."""


def read_machine() -> dict[str, Any]:
    """What machine.toml says, package names as pip normalizes them."""
    return tomllib.loads(Path(__file__).with_name("machine.toml").read_text())


def build(kit: Path) -> None:
    """Writes the folder, in place of one that is there.

    Raises:
        KitError: A wheel cannot be had, or it is larger than MOST_BYTES.
    """
    machine = read_machine()
    kit.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kit.parent) as scratch:
        folder = Path(scratch, "kit")
        wheels = folder / "wheels"
        wheels.mkdir(parents=True)
        _download(missing(machine), machine, wheels)
        for file in _sources():
            target = folder / "src" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, target)
        script = Path(__file__).with_name("run.sh").read_text()
        (folder / "run.sh").write_text(script.replace("@PYTHON@", machine["python"]))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if size > MOST_BYTES:
            raise KitError(
                f"the kit has {size / _MIB:.1f} MiB, more than {MOST_BYTES / _MIB:.0f}; the "
                f"largest: {', '.join(_largest(folder))}."
            )
        shutil.rmtree(kit, ignore_errors=True)
        folder.rename(kit)
    names = sorted(file.name.split("-")[0] for file in (kit / "wheels").iterdir())
    print(f"{kit}: {size / _MIB:.1f} MiB; {len(names)} wheels: {', '.join(names)}")
    print(f"Take the folder along, and there: bash {kit.name}/run.sh lab --out OUT")


def missing(machine: Mapping[str, Any]) -> list[str]:
    """The requirements that the machine lacks, as NAME==VERSION.

    Raises:
        KitError: They cannot be resolved.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["bench"]]
    there = {**machine["packages"], **machine["gpu_packages"]}
    with tempfile.TemporaryDirectory() as scratch:
        pins = Path(scratch, "constraints.txt")
        pins.write_text("".join(f"{name}=={v}\n" for name, v in there.items() if v))
        report = Path(scratch, "report.json")
        options = ["--dry-run", "--ignore-installed", "--target", scratch, "--quiet"]
        _pip("install", *options, "--report", str(report), "-c", str(pins), *wanted, on=machine)
        found = json.loads(report.read_text())["install"]
    needed = {_normal(p["metadata"]["name"]): p["metadata"]["version"] for p in found}
    return [f"{name}=={version}" for name, version in sorted(needed.items()) if name not in there]


def _download(requirements: Sequence[str], machine: Mapping[str, Any], wheels: Path) -> None:
    _pip("download", "--quiet", "--no-deps", "-d", str(wheels), *requirements, on=machine)
    for wheel in wheels.iterdir():
        # zipfile unpacks it there, which puts no file of these anywhere else.
        moved = [n for n in zipfile.ZipFile(wheel).namelist() if re.search(r"\.data/.*lib/", n)]
        if moved:
            raise KitError(f"{wheel.name} has to be installed, not unpacked: it has {moved[0]}.")


def _pip(command: str, *arguments: str, on: Mapping[str, Any]) -> None:
    """Runs pip for the machine, wheels only."""
    # pip takes each name as it is written, and not what is older.
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in range(on["glibc"], 4, -1)]
    platforms += [f"--platform=manylinux{n}_x86_64" for n in (2014, 2010, 1)]
    # In a Python like the machine's: pip evaluates markers and Requires-Python for its own.
    pip = [sys.executable, "-m", "pip", "--python", find_python(on["python"]), command]
    done = subprocess.run(
        [*pip, *_PIP_OPTIONS, "--only-binary=:all:", *platforms, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise KitError(_reason(done.stderr))


def _reason(stderr: str) -> str:
    """pip's errors in a line."""
    if re.search(r"Connection|Retrying|resolve host|ProxyError|ReadTimeout", stderr):
        return "the package index cannot be reached; building the kit needs the network."
    match = re.search(r"No matching distribution found for (\S+)", stderr)
    if match:
        return f"there is no wheel of {match[1]} for that machine (rtpjax/lab/machine.toml)."
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
    return f"the wheels cannot be had: {lines[-1].removeprefix('ERROR: ')}"


def _sources() -> list[str]:
    """Our files that the lab needs; new ones need not be committed."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--"]
    done = subprocess.run(
        [*listing, "pyproject.toml", *_PACKAGES, *_TESTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise KitError(f"{ROOT} is no git checkout, which says what our sources are.")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def _largest(folder: Path) -> list[str]:
    files = sorted((f for f in folder.rglob("*") if f.is_file()), key=lambda f: -f.stat().st_size)
    return [f"{file.name} ({file.stat().st_size / _MIB:.1f})" for file in files[:4]]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test(kit: Path, stages: str) -> None:
    """Runs a kit where there is only what machine.toml lists, without network.

    Args:
        kit: From build.
        stages: Of the lab, with commas between; "none" for none.

    Raises:
        KitError: Something does not work.
    """
    if not (kit / "run.sh").is_file():
        raise KitError(f"{kit}: no kit is there; run make lab-kit.")
    python = simulated_machine(kit.parent / "lab-machine")
    inside = [sys.executable, "-m", "rtpjax.lab.kit_trial", str(kit.resolve()), str(python), stages]
    if _can_unshare():
        print("Without network: a network namespace of its own.", flush=True)
        inside = ["unshare", "--map-root-user", "--net", *inside]
    else:
        print("Without network: proxies that lead nowhere (unshare is not allowed).", flush=True)
    done = subprocess.run(inside, cwd=ROOT, env={**os.environ, **_NOWHERE}, check=False)
    if done.returncode:
        raise KitError("the kit does not work; what failed stands above.")


_NOWHERE = {
    **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"),
    "no_proxy": "127.0.0.1,localhost",
    "PIP_NO_INDEX": "1",
}


def _can_unshare() -> bool:
    tried = ["unshare", "--map-root-user", "--net", "true"]
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(tried, capture_output=True, check=False).returncode
    )


def simulated_machine(folder: Path) -> Path:
    """The Python of an environment with machine.toml's packages; made again when they change.

    Raises:
        KitError: There is no such Python, or packages cannot be had.
    """
    machine = read_machine()
    packages = [f"{n}=={v}" if v else n for n, v in machine["packages"].items()]
    folder = folder.resolve()
    python, stamp = folder / "bin" / "python", folder / "packages"
    if stamp.is_file() and stamp.read_text() == "\n".join(packages):
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"Making {folder}: what such a machine has (some minutes) ...", flush=True)
    subprocess.run([find_python(machine["python"]), "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", *_PIP_OPTIONS, *packages]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KitError(_reason(done.stderr))
    stamp.write_text("\n".join(packages))
    return python


def find_python(version: str) -> str:
    """An interpreter of this version: our own, one in PATH, or pyenv's.

    Raises:
        KitError: There is none.
    """
    pyenv = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
    for python in (sys.executable, shutil.which(f"python{version}"), *map(str, pyenv)):
        told = [python or "", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if python is not None:
            done = subprocess.run(told, capture_output=True, text=True, check=False)
            if done.stdout.strip() == version:
                return python
    raise KitError(f"there is no Python {version}, which the machine has; put it into PATH.")


def main(arguments: Sequence[str]) -> int:
    """Builds or tests; 1 and a line if that fails."""
    try:
        match arguments:
            case ["build", kit]:
                build(Path(kit))
            case ["test", kit, stages]:
                test(Path(kit), stages)
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except KitError as error:
        print(f"lab-kit: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
