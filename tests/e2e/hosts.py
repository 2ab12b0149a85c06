"""Groups of server processes that share one mesh, and the tiny model that they serve."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.checkpoints_conv import tiny as checkpoints
from tests.e2e.conftest import Server
from tests.rtpjax.engine import tiny

CONFIG = {
    **tiny.HF_CONFIG,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 8,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
}
SETTINGS = {
    "ACT_TYPE": "FP32",
    "CONCURRENCY_LIMIT": "2",
    "MAX_BATCH_TOKENS_SIZE": "16",
    "MAX_SEQ_LEN": "4096",
    "SEQ_SIZE_PER_BLOCK": "16",
    "JAX_PLATFORMS": "cpu",
}


def write_model(folder: Path) -> Path:
    """A checkpoint that 8 devices can share, with its tokenizer."""
    checkpoints.write_folder(folder, CONFIG, checkpoints.weights(CONFIG))
    tiny.tokenizer().save_pretrained(folder)
    return folder


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Group:
    """Processes that serve one model over all their devices; `leader` has HTTP."""

    def __init__(self, folder: Path, num_processes: int, num_devices: int, **environment: str):
        folder.mkdir()
        self.common = {
            **SETTINGS,
            "TP_SIZE": str(num_processes * num_devices),
            "WORLD_SIZE": str(num_processes * num_devices),
            "LOCAL_WORLD_SIZE": str(num_devices),
            "COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
            **environment,
        }
        self.servers = [
            Server(folder / f"log{i}", **self.common, WORLD_RANK=str(i * num_devices))
            for i in range(num_processes)
        ]
        self.leader, *self.followers = self.servers

    def __enter__(self) -> Group:
        self.leader.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.process.kill()
            server.process.wait()

    def logs(self) -> str:
        return "\n".join(f"== {s.log}\n{s.log.read_text()[-3000:]}" for s in self.servers)
