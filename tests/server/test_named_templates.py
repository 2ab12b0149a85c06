"""Checkpoints with several chat templates, in every layout, against transformers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from checkpoints_conv.convert import _write_texts
from checkpoints_conv.readers import open_checkpoint
from rtpjax.errors import CheckpointError, ConfigError
from rtpjax.tokenizer import load_tokenizer
from server.chat_template import chat_templates
from tests.checkpoints_conv import tiny
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import make_tokenizer
from tests.server.speaking_engine import SpeakingEngine


def template(name: str, tools: str = "") -> str:
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    return f"<{name}>{tools}{turns}{{% if add_generation_prompt %}}go{{% endif %}}"


DEFAULT, RAG = template("default"), template("rag")
TOOL_USE = template("tool_use", "{{ tools | tojson }}[TOOL_CALLS]")
MESSAGES = [{"role": "user", "content": "hi"}]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}]


def named(**templates: str) -> list[dict[str, str]]:
    return [{"name": name, "template": text} for name, text in templates.items()]


def layout(
    config: Any = None, file: str | None = None, legacy: Any = None, **additional: str
) -> Callable[[Path], None]:
    """Writes what is given where checkpoints have it."""

    def write(folder: Path) -> None:
        make_tokenizer(None).save_pretrained(folder)
        if config is not None:
            path = folder / "tokenizer_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": config}))
        if file is not None:
            (folder / "chat_template.jinja").write_text(file)
        if legacy is not None:
            (folder / "chat_template.json").write_text(json.dumps({"chat_template": legacy}))
        for name, text in additional.items():
            (folder / "additional_chat_templates").mkdir(exist_ok=True)
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)

    return write


LAYOUTS = {
    "one": layout(DEFAULT),
    "one that knows tools": layout(TOOL_USE),
    "list": layout(named(default=DEFAULT, tool_use=TOOL_USE, rag=RAG)),
    "list of default": layout(named(default=DEFAULT)),
    "list of another": layout(named(rag=RAG)),
    "list without default": layout(named(tool_use=TOOL_USE, rag=RAG)),
    "file": layout(file=DEFAULT),
    "file before config": layout(named(default=RAG, tool_use=RAG), file=DEFAULT),
    "folder": layout(file=DEFAULT, tool_use=TOOL_USE, rag=RAG),
    "folder alone": layout(tool_use=TOOL_USE),
    "folder before config": layout(DEFAULT, tool_use=TOOL_USE),
    "processor's file beside another": layout(DEFAULT, legacy=RAG),
}


def serve(tokenizer: PreTrainedTokenizerFast) -> LiveServer:
    engine = SpeakingEngine("x")
    engine.tokenizer = tokenizer
    return LiveServer(engine)


@pytest.mark.parametrize("name", LAYOUTS)
def test_prompts_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    truth = AutoTokenizer.from_pretrained(tmp_path)
    is_several = isinstance(truth.chat_template, dict)
    keys = (None, *truth.chat_template) if is_several else (None,)
    with serve(load_tokenizer(tmp_path)) as server:
        for tools in (None, TOOLS):
            for key in keys:
                expected = None
                try:
                    expected = truth.apply_chat_template(
                        MESSAGES,
                        tools=tools,
                        chat_template=key,
                        tokenize=False,
                        add_generation_prompt=True,
                    )
                except ValueError:
                    assert "default" not in truth.chat_template
                for field in ("template_key", "chat_template"):
                    body = {"messages": MESSAGES, "tools": tools, field: key}
                    answer = server.client.post("/chat/render", json=body)
                    if expected is None:
                        assert answer.status_code == 400
                        assert answer.json()["error"]["param"] == "template_key"
                        assert "tool_use" in str(truth.chat_template) or "rag" in answer.text
                        continue
                    prompt = answer.json()["prompt"]
                    # A template that knows no tools is told of them by a system text of ours.
                    is_told = tools and "tools" not in _source(truth, key)
                    assert prompt == expected or (is_told and "# Tools" in prompt)


def _source(truth: Any, key: str | None) -> str:
    return truth.get_chat_template(key, tools=TOOLS)


def test_the_parser_of_calls_is_that_of_the_template_for_tools(tmp_path: Path) -> None:
    LAYOUTS["list"](tmp_path)
    call = '[TOOL_CALLS][{"name": "f", "arguments": {"a": "b"}}]'
    with serve(load_tokenizer(tmp_path)) as server:
        server.engine.answer = call  # pyright: ignore[reportAttributeAccessIssue]
        message = server.chat(tools=TOOLS).json()["choices"][0]["message"]
        assert [c["function"]["name"] for c in message["tool_calls"]] == ["f"]
        assert server.chat().json()["choices"][0]["message"]["content"] == call


def test_other_templates_are_named_by_one_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LAYOUTS["folder"](tmp_path)
    with caplog.at_level(logging.WARNING), serve(load_tokenizer(tmp_path)):
        pass
    [line] = [r.getMessage() for r in caplog.records if "template" in r.getMessage()]
    assert "(rag)" in line
    assert "template_key" in line


def test_an_unknown_name_is_refused_with_those_there_are(tmp_path: Path) -> None:
    LAYOUTS["list"](tmp_path)
    with serve(load_tokenizer(tmp_path)) as server:
        error = server.chat(template_key="nope").json()["error"]
        assert error["param"] == "template_key"
        assert "default, rag, tool_use" in error["message"]
        assert server.chat(chat_template="nope").json()["error"]["param"] == "chat_template"
        both = server.chat(chat_template="rag", template_key="rag").json()["error"]
        assert both["param"] == "template_key"


def test_a_processors_file_is_read_where_there_is_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout(legacy=DEFAULT)(tmp_path / "a")
    assert load_tokenizer(tmp_path / "a").chat_template == DEFAULT
    layout(legacy=named(default=DEFAULT, rag=RAG))(tmp_path / "b")
    assert load_tokenizer(tmp_path / "b").chat_template == {"default": DEFAULT, "rag": RAG}
    layout(DEFAULT, legacy=RAG)(tmp_path / "c")
    with caplog.at_level(logging.WARNING, "rtpjax.tokenizer"):
        assert load_tokenizer(tmp_path / "c").chat_template == DEFAULT
    assert "chat_template.json is left out" in caplog.text
    (tmp_path / "c" / "chat_template.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"chat_template\.json"):
        load_tokenizer(tmp_path / "c")


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        (DEFAULT, DEFAULT),
        (named(default=DEFAULT, tool_use=TOOL_USE), {"default": DEFAULT, "tool_use": TOOL_USE}),
        (named(tool_use=TOOL_USE, rag=RAG), {"tool_use": TOOL_USE, "rag": RAG}),
    ],
)
def test_templates_of_a_gguf(tmp_path: Path, templates: Any, expected: Any) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    tiny.add_tokenizer(writer, 40, chat_template=templates)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert load_tokenizer(path).chat_template == expected


def test_a_converted_folder_keeps_them(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "out"
    config = tiny.config()
    tiny.write_folder(source, config, tiny.weights(config))
    LAYOUTS["folder"](source)
    folder.mkdir()
    _write_texts(open_checkpoint(source), folder)
    assert load_tokenizer(folder).chat_template == load_tokenizer(source).chat_template


def test_a_broken_template_that_nobody_needs_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.chat_template = {"default": DEFAULT, "rag": "{% for %}"}
    with caplog.at_level(logging.WARNING, "server.chat_template"):
        assert chat_templates(tokenizer, timeout_s=5).keys() == {"default"}
    assert "'rag' is left out" in caplog.text
    tokenizer.chat_template = {"default": DEFAULT, "tool_use": "{% for %}"}
    with pytest.raises(ConfigError, match="line 1"):
        chat_templates(tokenizer, timeout_s=5)
