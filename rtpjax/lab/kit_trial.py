"""What `make lab-kit-test` runs where there is no network: the kit's server, then its lab.

python -m rtpjax.lab.kit_trial KIT PYTHON STAGES; standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_START_S, _LAB_S = 300, 900
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
}
_SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "on": {"type": "boolean"}},
    "required": ["kind", "on"],
    "additionalProperties": False,
}


def loopback_up() -> None:
    """Brings the namespace's own loopback up, where it is one of its own."""
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    try:
        from fcntl import ioctl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = struct.pack("16sh14x", b"lo", 0)
            flags = struct.unpack("16sh14x", ioctl(any_socket, get_flags, request))[1]
            ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", flags | up))
    except PermissionError:
        pass  # not our namespace; there it is up


def bare(kit: Path, python: str, scratch: Path, **settings: str) -> dict[str, str]:
    """The environment of a user who has just come to the machine."""
    proxies = {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(scratch),
        "LANG": "C.UTF-8",
        "PYTHON": python,
        "JAX_PLATFORMS": "cpu",
        "PIP_NO_INDEX": "1",
        **proxies,
        **settings,
    }


@contextlib.contextmanager
def served(kit: Path, python: str, scratch: Path) -> Iterator[str]:
    """A server of random weights; its URL."""
    (scratch / "tiny").mkdir()
    (scratch / "tiny" / "config.json").write_text(json.dumps(_CONFIG))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = bare(
        kit,
        python,
        scratch,
        LOAD_FORMAT="dummy",
        CHECKPOINT_PATH=str(scratch / "tiny"),
        START_PORT=str(port),
        CONCURRENCY_LIMIT="2",
        MAX_BATCH_TOKENS_SIZE="16",
        MAX_SEQ_LEN="256",
        KV_CACHE_MEM_MB="16",
    )
    log = scratch / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", str(kit / "run.sh"), "serve"],
            env=env,
            cwd=scratch,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_S
        while not _is_healthy(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _is_healthy(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
    except OSError:
        return False


def chat(url: str, **options: Any) -> dict[str, Any]:
    """The first choice of a chat."""
    body = {"messages": [{"role": "user", "content": "Grüße!"}], "max_tokens": 60, **options}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["choices"][0]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"a chat failed: {error.read().decode()}") from error


def try_server(kit: Path, python: str, scratch: Path) -> None:
    """A chat, and one under a JSON schema."""
    started = time.monotonic()
    with served(kit, python, scratch) as url:
        print(f"The server is ready after {time.monotonic() - started:.0f} s.", flush=True)
        assert chat(url, ignore_eos=True)["finish_reason"] == "length"
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}
        choice = chat(url, response_format=schema)
        said = json.loads(choice["message"]["content"])
        assert said["kind"] in ("a", "b") and isinstance(said["on"], bool), said
        print(f"A chat, and one under a JSON schema: {said}", flush=True)


def try_lab(kit: Path, python: str, scratch: Path, stages: str) -> None:
    """The lab in miniature."""
    out = scratch / "out"
    command = ["bash", str(kit / "run.sh"), "lab", "--out", str(out), "--small"]
    done = subprocess.run(
        [*command, "--stages", stages],
        env=bare(kit, python, scratch),
        cwd=scratch,
        timeout=_LAB_S,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the lab ended with {done.returncode}.")
    print(f"The lab: {', '.join(sorted(file.name for file in out.iterdir()))}", flush=True)


def main() -> None:
    """Runs both; ends with a message if one fails."""
    kit, python, stages = Path(sys.argv[1]), *sys.argv[2:]
    loopback_up()
    with tempfile.TemporaryDirectory() as scratch:
        try_server(kit, python, Path(scratch))
        if stages != "none":
            try_lab(kit, python, Path(scratch), stages)


if __name__ == "__main__":
    main()
