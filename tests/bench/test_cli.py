import json
import os
import subprocess
import sys
import time

import pytest

from bench.cli import main
from bench.report import busy_share, environment, table

SERVE = ["--num-warmup", "1", "--input-len", "8", "--output-len", "5"]


def test_serve_writes_json_and_picture(start_server, fake_server, tmp_path, capsys):
    fake = fake_server(ttft_s=0.01, itl_s=0.005)
    results, picture = tmp_path / "run.json", tmp_path / "run.png"
    files = ["--json", str(results), "--plot", str(picture)]
    url = start_server(fake)
    assert (
        main(["serve", "--url", url, "--num-requests", "6", "--clients", "2", *SERVE, *files]) == 0
    )
    printed = capsys.readouterr().out
    assert "6 requests, 0 errors" in printed and "ttft ms" in printed
    document = json.loads(results.read_text())
    assert document["benchmark"] == "serve"
    assert document["summary"]["num_output_tokens"] == 30
    assert {"command", "date", "versions", "cpu"} <= set(document["environment"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(fake.bodies) == 7  # the warm-up is sent, not measured
    assert fake.bodies[0]["prompt"] not in [body["prompt"] for body in fake.bodies[1:]]


def test_serve_at_a_rate(start_server, fake_server, capsys):
    url = start_server(fake_server(ttft_s=0.01, itl_s=0.0))
    assert main(["serve", "--url", url, "--num-requests", "5", "--rate", "50", *SERVE]) == 0
    assert "50 requests/s: 5 requests, 0 errors" in capsys.readouterr().out


def test_serve_fails_when_every_request_fails(start_server, fake_server, capsys):
    url = start_server(fake_server(ttft_s=0.0, itl_s=0.0, failures=["status"] * 4))
    assert main(["serve", "--url", url, "--num-requests", "3", *SERVE]) == 1
    assert "error x3: StreamError: HTTP 429" in capsys.readouterr().out


def test_serve_succeeds_when_some_requests_fail(start_server, fake_server):
    url = start_server(fake_server(ttft_s=0.0, itl_s=0.0, failures=[None, "status", None]))
    assert main(["serve", "--url", url, "--num-requests", "3", *SERVE]) == 0


@pytest.mark.parametrize("command", ["serve", "prefix"])
def test_no_server(command, capsys):
    assert main([command, "--url", "http://127.0.0.1:9/v1"]) == 1
    assert "is the server up" in capsys.readouterr().out


def test_prefix_reports_the_shared_part(start_server, fake_server, tmp_path):
    fake = fake_server(ttft_s=0.2, itl_s=0.0, is_caching=True)
    results = tmp_path / "prefix.json"
    options = ["--rounds", "3", "--prefix-len", "100", "--json", str(results)]
    assert main(["prefix", "--url", start_server(fake), *options]) == 0
    document = json.loads(results.read_text())
    cold_ms, shared_ms, ratio, num_cached = document["medians"]
    assert num_cached == 96  # six full pages of the 100 shared tokens
    assert 199 <= cold_ms <= 400 and 49 <= shared_ms <= 150
    assert 1.5 <= ratio <= 4.5
    assert len(document["rounds"]) == 3 and len(fake.bodies) == 8


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="read from /proc/stat")
def test_busy_share_sees_a_busy_core():
    code = "import time; end = time.time() + 5\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        time.sleep(0.2)
        busy = busy_share(0.5)
        process.kill()
    assert busy is not None and 0.8 / (os.cpu_count() or 1) <= busy <= 1.0


def test_environment_names_the_processor():
    described = environment()
    assert described["cpu"] and described["versions"]["jax"]


def test_table_aligns():
    assert table(("name", "x"), [("a", 1.0), ("long name", 1234.5), ("none", None)]) == (
        "name          x\n---------------\na          1.00\nlong name  1234\nnone          -"
    )
