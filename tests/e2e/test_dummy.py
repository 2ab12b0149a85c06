"""A server of random weights, split over two devices: chat, JSON, and the tokens of one device."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import openai
import pytest

from bench.cli import main as bench
from checkpoints_conv.readers import open_checkpoint
from rtpjax.config import MIB, EngineSettings
from rtpjax.engine.load import load_engine
from rtpjax.engine.request import SamplingParams
from rtpjax.tokenizer import load_tokenizer
from tests.e2e.conftest import Server
from tests.e2e.hosts import SETTINGS
from tests.rtpjax.engine import tiny

CONFIG = {**tiny.HF_CONFIG, "max_position_embeddings": 512}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "kind": {"enum": ["a", "b"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}
PROMPT = [10, 20, 30, 260]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder / "config.json"


@pytest.fixture(scope="module")
def server(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {**SETTINGS, "MAX_SEQ_LEN": "256", "KV_CACHE_MEM_MB": "16"}
    settings |= {"TP_SIZE": "2", "JAX_NUM_CPU_DEVICES": "2", "LOAD_FORMAT": "dummy"}
    log = tmp_path_factory.mktemp("server") / "log"
    running = Server(log, CHECKPOINT_PATH=str(config_file.parent), **settings)
    running.wait_ready()
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", timeout=120) as made:
        yield made


def test_it_says_that_its_weights_are_random(server: Server, client: openai.OpenAI):
    [model] = client.models.list().data
    assert model.id == "tiny-dummy"
    assert (model.model_extra or {})["load_format"] == "dummy"
    log = server.log.read_text()
    assert "WARNING rtpjax.dummy_checkpoint: The weights are random (LOAD_FORMAT=dummy)" in log
    assert "rtpjax is ready: tiny-dummy (random weights: LOAD_FORMAT=dummy) at" in log


def test_a_chat_and_json(client: openai.OpenAI):
    messages = [{"role": "user", "content": "Grüße! 你好"}]
    answer = client.chat.completions.create(
        model="tiny-dummy", messages=messages, max_tokens=20, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None and answer.usage.completion_tokens == 20
    answer = client.chat.completions.create(
        model="tiny-dummy",
        messages=messages,
        max_tokens=120,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    )
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)


def test_two_devices_say_what_one_says(client: openai.OpenAI, config_file: Path):
    answer = client.completions.create(
        model="tiny-dummy",
        prompt=PROMPT,
        max_tokens=24,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    settings = EngineSettings(
        act_type="FP32",
        max_model_len=64,
        page_size=16,
        max_num_seqs=2,
        max_num_batched_tokens=16,
        kv_cache_bytes=MIB,
    )
    tokenizer = load_tokenizer(config_file)
    engine = load_engine(open_checkpoint(config_file), tokenizer, (), settings, show_progress=False)
    sampling = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    [outputs] = engine.generate([PROMPT], sampling)
    ids = [token_id for output in outputs for token_id in output.token_ids]
    assert len(set(ids)) > 5
    assert answer.choices[0].text == tokenizer.decode(ids, skip_special_tokens=True)


def test_bench_serve(server: Server, capsys):
    load = ["--endpoint", "chat", "--clients", "2", "--num-requests", "3", "--num-warmup", "1"]
    lengths = ["--input-len", "8", "--output-len", "6", "--ignore-eos"]
    assert bench(["serve", "--url", f"{server.url}/v1", *load, *lengths]) == 0
    assert "3 requests, 0 errors" in capsys.readouterr().out


@pytest.mark.processes
def test_a_vocabulary_without_room_for_bytes(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 64}))
    command = [sys.executable, "-m", "rtpjax.cli", "serve", "--load_format", "dummy"]
    done = subprocess.run(
        [*command, "--checkpoint_path", str(tmp_path), "--start_port", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "rtpjax cannot start: vocab_size is 64" in done.stderr
    assert "Traceback" not in done.stderr
