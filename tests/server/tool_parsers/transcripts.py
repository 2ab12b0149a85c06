"""What models write, format by format, and what it means. Each format needs a list of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "metric": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "where": {"type": "object"},
        },
    },
    "now": {"type": "object", "properties": {}},
}


@dataclass(frozen=True)
class Transcript:
    """An answer's text, its content, and its calls: names and arguments as JSON values or text."""

    title: str
    text: str
    content: str
    calls: tuple[tuple[str, Any], ...] = ()


T = Transcript

HARD = {
    "city": 'Zürich 🏔 "quoted" {[<b>]} \\ \n 北京',
    "days": -3,
    "where": {"a": [1, {"b": None}]},
}
HARD_JSON = (
    r'{"city": "Zürich 🏔 \"quoted\" {[<b>]} \\ \n 北京", "days": -3, '
    r'"where": {"a": [1, {"b": null}]}}'
)
PARIS = {"city": "Paris"}


def json_format(
    begin: str, end: str, *, list_form: bool = False, key: str = "arguments"
) -> list[Transcript]:
    """The cases that all formats of JSON objects share."""

    def call(name: str, arguments: str) -> str:
        return f'{{"name": "{name}", "{key}": {arguments}}}'

    def section(*calls: str) -> str:
        if list_form:
            return f"{begin}[{', '.join(calls)}]{end}"
        return "\n".join(f"{begin}{c}{end}" for c in calls)

    weather = call("get_weather", '{"city": "Paris"}')
    return [
        T("one", section(weather), "", (("get_weather", PARIS),)),
        T("nothing asked", "  Just text.\n", "  Just text.\n"),
        T("no arguments", section(call("now", "{}")), "", (("now", {}),)),
        T("several", section(weather, call("now", "{}"), weather), "",
          (("get_weather", PARIS), ("now", {}), ("get_weather", PARIS))),
        T("hard strings", section(call("get_weather", HARD_JSON)), "", (("get_weather", HARD),)),
        T("marks in a string",
          section(call("get_weather", '{"city": "a </tool_call> <tool_call> b"}')), "",
          (("get_weather", {"city": "a </tool_call> <tool_call> b"}),)),
        T("spaces kept", section(call("get_weather", '{ "city" :\n "Paris" }')), "",
          (("get_weather", '{ "city" :\n "Paris" }'),)),
    ]  # fmt: skip


def marked(begin: str, end: str, good: str) -> list[Transcript]:
    """The cases around a section; `good` is one with a call of get_weather for Paris."""
    call = ("get_weather", PARIS)
    return [
        T("text before", f"I look.\n\n{good}", "I look.", (call,)),
        T("text after", f"{good}\nDone.", "\nDone.", (call,)),
        T("a mark in prose", f"The mark {begin} opens a call.", f"The mark {begin} opens a call."),
        T("mark at the end", f"See {begin}", f"See {begin}"),
        T("half a mark", f"See {begin[:-1]}", f"See {begin[:-1]}"),
        T("prose, then a call", f"Not {begin} this:\n{good}", f"Not {begin} this:", (call,)),
    ]


HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
XML = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
    "</function>\n</tool_call>"
)
MINIMAX = (
    '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
    "</invoke>\n</minimax:tool_call>"
)
GLM45 = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>"
)
GLM47 = "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>"
AGENT = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Paris"}'
HARMONY = (
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"city": "Paris"}<|call|>'
)
GEMMA = "<start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>"
DS_BEGIN, DS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"


def ds3(name: str, arguments: str) -> str:
    return (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```"
        "<｜tool▁call▁end｜>"
    )


def ds31(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"


def kimi(index: int, name: str, arguments: str) -> str:
    return (
        f"<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{arguments}"
        "<|tool_call_end|>"
    )


KIMI_BEGIN, KIMI_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
WEATHER = ("get_weather", PARIS)
TYPED = {
    "city": "A <b>tag</b>\n {x} \"q\" </tool_call> é\\n", "days": 3, "metric": True,
    "tags": ["a", "b"], "where": {"x": None}, "other": 1.5, "more": "plain text",
}  # fmt: skip

SEED = (
    "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n</function>\n"
    "</seed:tool_call>"
)
COHERE = (
    '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", '
    '"parameters": {"city": "Paris"}}\n]<|END_ACTION|>'
)
GEMMA4 = '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>'
LFM2 = "<|tool_call_start|>[get_weather(city='Paris')]<|tool_call_end|>"


def dsml(name: str, parameters: dict[str, tuple[str, str]]) -> str:
    """A call of DeepSeek V3.2; each parameter says whether it is a string, and its text."""
    tags = (
        f'<｜DSML｜parameter name="{key}" string="{kind}">{text}</｜DSML｜parameter>\n'
        for key, (kind, text) in parameters.items()
    )
    invoke = f'<｜DSML｜invoke name="{name}">\n{"".join(tags)}</｜DSML｜invoke>\n'
    return f"<｜DSML｜function_calls>\n{invoke}</｜DSML｜function_calls>"


DSML = dsml("get_weather", {"city": ("true", "Paris")})


def xml_values(before: str, between: str, after: str) -> str:
    """All of TYPED as parameters."""
    texts = {**TYPED, "days": "3", "metric": "True", "tags": "['a', 'b']",
             "where": '{"x": null}', "other": "1.5"}  # fmt: skip
    return "".join(f"{before}{k}{between}{v}{after}" for k, v in texts.items())


def headed(begin: str, end: str, call: Any) -> list[Transcript]:
    """The cases of formats with a header; `call` writes one from its name and arguments."""

    def section(*calls: tuple[str, str]) -> str:
        return begin + "\n".join(call(*c) for c in calls) + end

    good = ("get_weather", '{"city": "Paris"}')
    return [
        T("one", section(good), "", (WEATHER,)),
        T("text before", "I look.\n" + section(good), "I look.", (WEATHER,)),
        T("text after", section(good) + " Done.", " Done.", (WEATHER,)),
        T("several", section(good, ("now", "{}"), good), "", (WEATHER, ("now", {}), WEATHER)),
        T("hard strings", section(("get_weather", HARD_JSON)), "", (("get_weather", HARD),)),
        T("cut off in the arguments", section(good).split('ris"')[0], "",
          (("get_weather", '{"city": "Pa'),)),
        T("cut off in the header", section(good).split("weather")[0],
          section(good).split("weather")[0]),
        T("no JSON", section(("get_weather", "Paris")), section(("get_weather", "Paris"))),
        T("no section end", begin + call(*good), "", (WEATHER,)),
    ]  # fmt: skip


TRANSCRIPTS: dict[str, list[Transcript]] = {
    "hermes": [
        *json_format("<tool_call>\n", "\n</tool_call>"),
        *marked("<tool_call>", "</tool_call>", HERMES),
        T("one line", HERMES.replace("\n", ""), "", (WEATHER,)),
        T("two in one section", '<tool_call>{"name": "now", "arguments": {}}\n'
          '{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>', "",
          (("now", {}), WEATHER)),
        T("arguments first", '<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}'
          "</tool_call>", "", (WEATHER,)),
        T("arguments as a string", '<tool_call>{"name": "get_weather", "arguments": '
          '"{\\"city\\": \\"Paris\\"}"}</tool_call>', "", (WEATHER,)),
        T("no arguments key", '<tool_call>{"name": "now"}</tool_call>', "", (("now", {}),)),
        T("null arguments", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "",
          (("now", {}),)),
        T("OpenAI's shape", '<tool_call>{"type": "function", "function": {"name": "get_weather", '
          '"arguments": {"city": "Paris"}}}</tool_call>', "", (WEATHER,)),
        T("no closing mark", HERMES.removesuffix("\n</tool_call>"), "", (WEATHER,)),
        T("no closing mark, then text", HERMES.removesuffix("\n</tool_call>") + "\nDone.",
          "\nDone.", (WEATHER,)),
        T("a brace too few", HERMES.replace("}}", "}"), "", (WEATHER,)),
        T("a brace too many", HERMES.replace("}}", "}}}"), "", (WEATHER,)),
        T("cut off in the arguments", HERMES.split("ris")[0], "",
          (("get_weather", '{"city": "Pa'),)),
        T("cut off in an escape", '<tool_call>{"name": "f", "arguments": {"a": "b\\', "",
          (("f", '{"a": "b\\'),)),
        T("cut off in the name", HERMES.split("weather")[0], HERMES.split("weather")[0]),
        T("no JSON", "A <tool_call>\nget_weather(Paris)\n</tool_call> B",
          "A <tool_call>\nget_weather(Paris)\n</tool_call> B"),
        T("no name", '<tool_call>\n{"arguments": {}}\n</tool_call>',
          '<tool_call>\n{"arguments": {}}\n</tool_call>'),
        T("empty", "<tool_call></tool_call>", "<tool_call></tool_call>"),
        T("bad one after a good one", HERMES + '\n<tool_call>\n{"nam\n</tool_call>',
          '\n<tool_call>\n{"nam\n</tool_call>', (WEATHER,)),
        T("good one after a bad one", "<tool_call>{]</tool_call>\n" + HERMES,
          "<tool_call>{]</tool_call>", (WEATHER,)),
        T("broken arguments stay as they are", '<tool_call>{"name": "f", "arguments": {"a": }}'
          "</tool_call>", "", (("f", '{"a": }'),)),
        T("a bracket too few", '<tool_call>{"name": "f", "arguments": {"a": [1}'
          "</tool_call>ok", "ok", (("f", {"a": [1]}),)),
        T("two braces too few", HERMES.replace("}}", ""), "", (WEATHER,)),
        T("forgotten brackets", '<tool_call>{"name": "f", "arguments": {"a": [{"b": 1]}}'
          "</tool_call>", "", (("f", {"a": [{"b": 1}]}),)),
        T("a plain less-than", "if a <tool and b<", "if a <tool and b<"),
    ],
    "granite": [*json_format("<|tool_call|>", "", list_form=True),
                *marked("<|tool_call|>", "", '<|tool_call|>[{"name": "get_weather", '
                        '"arguments": {"city": "Paris"}}]')],
    "phi4_mini": [*json_format("functools", "", list_form=True),
                  *marked("functools", "", 'functools[{"name": "get_weather", '
                          '"arguments": {"city": "Paris"}}]')],
    "xlam": [
        *json_format("", "", list_form=True),
        *json_format("```json\n", "\n```", list_form=True),
        T("text after", '[{"name": "now", "arguments": {}}] Done.', " Done.", (("now", {}),)),
        T("another list", "[1, 2, 3]", "[1, 2, 3]"),
        T("a JSON answer", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}'),
        T("code", '```json\n[{"name": "Bob"}]\n```\n', '```json\n[{"name": "Bob"}]\n```\n'),
    ],
    "llama3_json": [
        *json_format("", "", list_form=True, key="parameters"),
        *json_format("<|python_tag|>", "", key="parameters"),
        T("semicolons", '{"name": "now", "parameters": {}}; {"name": "get_weather", '
          '"parameters": {"city": "Paris"}}', "", (("now", {}), WEATHER)),
        T("text after", '{"name": "now", "parameters": {}}\nDone.', "\nDone.", (("now", {}),)),
        T("another object", '{"name": "Bob", "parameters": {}}',
          '{"name": "Bob", "parameters": {}}'),
        T("code", '<|python_tag|>print("hi")', '<|python_tag|>print("hi")'),
        T("JSON later on", 'So: {"name": "now", "parameters": {}}',
          'So: {"name": "now", "parameters": {}}'),
    ],
    "internlm": [
        *json_format("<|action_start|><|plugin|>\n", "<|action_end|>", key="parameters"),
        *marked("<|action_start|>", "", '<|action_start|><|plugin|>{"name": "get_weather", '
                '"parameters": {"city": "Paris"}}<|action_end|>'),
    ],
    "mistral": [
        *json_format("[TOOL_CALLS] ", "", list_form=True),
        *headed("", "", lambda name, arguments: f"[TOOL_CALLS]{name}[ARGS]{arguments}")[:5],
        *marked("[TOOL_CALLS]", "", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'),
        T("call id", '[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}', "", (("now", {}),)),
        T("without [ARGS]", '[TOOL_CALLS]now{}', "", (("now", {}),)),
    ],
    "deepseek_v3": [*headed(DS_BEGIN, DS_END, ds3),
                    T("a mark in prose", f"{DS_BEGIN} opens", f"{DS_BEGIN} opens")],
    "deepseek_v31": headed(DS_BEGIN, DS_END, ds31),
    "kimi_k2": headed(KIMI_BEGIN, KIMI_END, lambda n, a: kimi(0, n, a)),
    "qwen_agent": [
        *headed("", "", lambda n, a: f"✿FUNCTION✿: {n}\n✿ARGS✿: {a}")[:7],
        *marked("✿FUNCTION✿", "", AGENT),
        T("a made-up result", AGENT + "\n✿RESULT✿: sunny\n✿RETURN✿: It is.", " It is.", (WEATHER,)),
    ],
    "gpt_oss": [
        *headed("", "", lambda n, a: f"<|start|>assistant<|channel|>commentary to=functions.{n} "
                f"<|constrain|>json<|message|>{a}<|call|>")[:7],
        T("short", HARMONY, "", (WEATHER,)),
        T("recipient at the role", "<|start|>assistant to=functions.now<|channel|>commentary json"
          "<|message|>{}<|call|>", "", (("now", {}),)),
        T("another channel", "<|channel|>final<|message|>Hi", "<|channel|>final<|message|>Hi"),
    ],
    "qwen3_coder": [
        T("one", XML, "", (WEATHER,)),
        *marked("<tool_call>", "", XML),
        T("no section", XML.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"), "",
          (WEATHER,)),
        T("no parameters", "<tool_call>\n<function=now>\n</function>\n</tool_call>", "",
          (("now", {}),)),
        T("several", XML + "\n" + XML, "", (WEATHER, WEATHER)),
        T("two in a section", "<tool_call><function=now></function><function=now></function>"
          "</tool_call>", "", (("now", {}), ("now", {}))),
        T("types", "<tool_call>\n<function=get_weather>\n"
          + xml_values("<parameter=", ">\n", "\n</parameter>\n") + "</function>\n</tool_call>",
          "", (("get_weather", TYPED),)),
        T("on one line", "<tool_call><function=get_weather><parameter=days>3</parameter>"
          "</function></tool_call>", "", (("get_weather", {"days": 3}),)),
        T("a closing tag is missing", XML.replace("</parameter>\n", ""), "", (WEATHER,)),
        T("all closing tags are missing", XML.split("\n</parameter>")[0], "", (WEATHER,)),
        T("two closing tags are missing", XML.replace("</parameter>\n</function>\n", ""), "",
          (WEATHER,)),
        T("wrong type", "<tool_call><function=get_weather><parameter=days>soon</parameter>"
          "</function></tool_call>", "", (("get_weather", {"days": "soon"}),)),
        T("cut off in the name", "<tool_call>\n<function=get_w", "<tool_call>\n<function=get_w"),
        T("lines are kept", XML.replace("Paris", "\nPa\n\nris\n"), "",
          (("get_weather", {"city": "\nPa\n\nris\n"}),)),
        T("empty string", XML.replace("Paris\n", ""), "", (("get_weather", {"city": ""}),)),
    ],
    "minimax_m2": [
        T("one", MINIMAX, "", (WEATHER,)),
        *marked("<minimax:tool_call>", "", MINIMAX),
        T("types", '<minimax:tool_call><invoke name="get_weather">'
          + xml_values('<parameter name="', '">', "</parameter>\n")
          + "</invoke></minimax:tool_call>", "", (("get_weather", TYPED),)),
        T("several", MINIMAX.replace("\n</minimax", '<invoke name="now"></invoke></minimax'), "",
          (WEATHER, ("now", {}))),
    ],
    "glm45": [
        T("one", GLM45, "", (WEATHER,)),
        *marked("<tool_call>", "", GLM45),
        T("no parameters", "<tool_call>now\n</tool_call>\n<tool_call>now</tool_call>", "",
          (("now", {}), ("now", {}))),
        T("types", "<tool_call>get_weather\n"
          + xml_values("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n") + "</tool_call>",
          "", (("get_weather", TYPED),)),
        T("a closing tag is missing", GLM45.replace("</arg_value>\n", ""), "", (WEATHER,)),
    ],
    "glm47": [
        T("one", GLM47, "", (WEATHER,)),
        *marked("<tool_call>", "", GLM47),
        T("several", GLM47 + GLM47, "", (WEATHER, WEATHER)),
        T("a closing tag is missing", GLM47.replace("</arg_value>", ""), "", (WEATHER,)),
    ],
    "pythonic": [
        T("one", '[get_weather(city="Paris")]', "", (WEATHER,)),
        T("several", "[now(), get_weather(city='Paris'), now()]", "",
          (("now", {}), WEATHER, ("now", {}))),
        T("marked", 'Well.\n<|python_start|>[get_weather(city="Paris")]<|python_end|>', "Well.",
          (WEATHER,)),
        T("values", "[get_weather(city='a, (b) \\'c\\' ]', days=-3, metric=True, tags=['x', \"y\"],"
          " where={'a': [1, {'b': None}]})]", "",
          (("get_weather", {"city": "a, (b) 'c' ]", "days": -3, "metric": True,
                            "tags": ["x", "y"], "where": {"a": [1, {"b": None}]}}),)),
        T("JSON values", "[get_weather(metric=true, where=null)]", "",
          (("get_weather", {"metric": True, "where": None}),)),
        T("a list", "[1, 2]", "[1, 2]"),
        T("an empty list", "[] is empty", "[] is empty"),
        T("another function", "[print(a=1)]", "[print(a=1)]"),
        T("JSON", '[{"name": "now", "parameters": {}}]', "", (("now", {}),)),
        T("a JSON object", '{"name": "now", "parameters": {}}', "", (("now", {}),)),
        T("by position", '[get_weather("Paris")]', '[get_weather("Paris")]'),
        T("text after", '[now()] Done.', " Done.", (("now", {}),)),
        T("cut off", '[get_weather(city="Paris", days=', "",
          (("get_weather", {"city": "Paris", "days": ""}),)),
        T("prose", "Look at [now()].", "Look at [now()]."),
    ],
    "gemma": [
        T("one", GEMMA, "", (WEATHER,)),
        *marked("<start_function_call>", "", GEMMA),
        T("values", "<start_function_call>call:get_weather{city:<escape>a {b}, \"c\"\n<escape>,"
          "days:-3,metric:true,tags:[<escape>x<escape>,<escape>y<escape>],where:{a:{b:null}}}"
          "<end_function_call>", "",
          (("get_weather", {"city": 'a {b}, "c"\n', "days": -3, "metric": True,
                            "tags": ["x", "y"], "where": {"a": {"b": None}}}),)),
        T("several", GEMMA + "<start_function_call>call:now{}<end_function_call>", "",
          (WEATHER, ("now", {}))),
        T("JSON", '<start_function_call>call:get_weather{"city": "Paris"}<end_function_call>', "",
          (WEATHER,)),
        T("quoted keys", "<start_function_call>call:get_weather{where:{<escape>a: {b}<escape>:1}}"
          "<end_function_call>", "", (("get_weather", {"where": {"a: {b}": 1}}),)),
        T("cut off", GEMMA.split("ris")[0], "", (("get_weather", {"city": "Pa"}),)),
    ],
    "deepseek_v32": [
        T("one", DSML, "", (WEATHER,)),
        *marked("<｜DSML｜function_calls>", "", DSML),
        T("text after", DSML + " Done.", " Done.", (WEATHER,)),
        T("types as its tags say", dsml("get_weather", {
            "city": ("true", "3"), "days": ("false", "3"), "metric": ("true", "true"),
            "tags": ("false", '["a", {"b": null}]'), "where": ("false", '{"x": "</y>"}'),
            "other": ("false", "no JSON"), "more": ("true", " <a> \"q\" \\n\n")}),
          "", (("get_weather", {"city": "3", "days": 3, "metric": "true",
                "tags": ["a", {"b": None}], "where": {"x": "</y>"}, "other": "no JSON",
                "more": ' <a> "q" \\n\n'}),)),
        T("types as the schema says", DSML.replace(' string="true"', "").replace(
            "city", "days").replace("Paris", "3"), "", (("get_weather", {"days": 3}),)),
        T("several", DSML.replace("</｜DSML｜function", '<｜DSML｜invoke name="now">\n'
          "</｜DSML｜invoke>\n</｜DSML｜function"), "", (WEATHER, ("now", {}))),
        T("a closing tag is missing", DSML.replace("</｜DSML｜parameter>", ""), "",
          (("get_weather", {"city": "Paris\n"}),)),
        T("cut off in a tag", DSML.split('"city')[0], "", (("get_weather", {"": ""}),)),
        T("another mark", "<｜DSML｜invoke", "<｜DSML｜invoke"),
    ],
    "seed_oss": [
        T("one", SEED, "", (WEATHER,)),
        *marked("<seed:tool_call>", "", SEED),
        T("types", "<seed:tool_call>\n<function=get_weather>\n"
          + xml_values("<parameter=", ">", "</parameter>\n") + "</function>\n</seed:tool_call>",
          "", (("get_weather", TYPED),)),
        T("line breaks are values", SEED.replace("Paris", "\nPa\nris\n"), "",
          (("get_weather", {"city": "\nPa\nris\n"}),)),
        T("several", SEED + "\n" + SEED.replace("<parameter=city>Paris</parameter>\n", ""), "",
          (WEATHER, ("get_weather", {}))),
        T("another family's mark", "<tool_call>now</tool_call>", "<tool_call>now</tool_call>"),
    ],
    "command_r7b": [
        *json_format("<|START_ACTION|>", "<|END_ACTION|>", list_form=True, key="parameters"),
        *marked("<|START_ACTION|>", "", COHERE),
        T("its own keys", COHERE, "", (WEATHER,)),
        T("several", COHERE.replace("\n]", ',\n    {"tool_call_id": "1", "tool_name": "now", '
          '"parameters": {}}\n]'), "", (WEATHER, ("now", {}))),
        T("text after", COHERE + "Done.", "Done.", (WEATHER,)),
    ],
    "gemma4": [
        T("one", GEMMA4, "", (WEATHER,)),
        *marked("<|tool_call>", "", GEMMA4),
        T("values", '<|tool_call>call:get_weather{city:<|"|>a {b}, "c"\n<|"|>,days:-3,metric:true,'
          'tags:[<|"|>x<|"|>,<|"|>]<|"|>],where:{a:{b:null}}}<tool_call|>', "",
          (("get_weather", {"city": 'a {b}, "c"\n', "days": -3, "metric": True,
                            "tags": ["x", "]"], "where": {"a": {"b": None}}}),)),
        T("quoted keys", '<|tool_call>call:get_weather{where:{<|"|>a: {b}<|"|>:1,<|"|><|"|>:2}}'
          "<tool_call|>", "", (("get_weather", {"where": {"a: {b}": 1, "": 2}}),)),
        T("several", GEMMA4 + "<|tool_call>call:now{}<tool_call|>", "", (WEATHER, ("now", {}))),
        T("cut off", GEMMA4.split("ris")[0], "", (("get_weather", {"city": "Pa"}),)),
        T("a mark in prose", "Write <|tool_call> first", "Write <|tool_call> first"),
    ],
    "lfm2": [
        T("one", LFM2, "", (WEATHER,)),
        *marked("<|tool_call_start|>", "", LFM2),
        T("text after", LFM2 + "I look.", "I look.", (WEATHER,)),
        T("several", LFM2.replace("]<", ", now()]<"), "", (WEATHER, ("now", {}))),
        T("JSON", '<|tool_call_start|>[{"name": "now", "arguments": {}}, {"name": "get_weather", '
          '"arguments": {"city": "Paris"}, "id": "a"}]<|tool_call_end|>Well.', "Well.",
          (("now", {}), WEATHER)),
        T("no mark", "[now()]", "[now()]"),
        T("another function", "<|tool_call_start|>[print(a=1)]<|tool_call_end|>",
          "<|tool_call_start|>[print(a=1)]<|tool_call_end|>"),
    ],
    "nemotron": [
        *json_format("<TOOLCALL>", "</TOOLCALL>", list_form=True),
        *marked("<TOOLCALL>", "", '<TOOLCALL>[{"name": "get_weather", '
                '"arguments": {"city": "Paris"}}]</TOOLCALL>'),
    ],
    "react": [
        T("one", 'Thought: I look.\nAction: get_weather\nAction Input: {"city": "Paris"}\n',
          "Thought: I look.", (WEATHER,)),
        T("with an observation", 'T\nAction: now\nAction Input: {}\nObservation: noon', "T",
          (("now", {}),)),
        T("no text before", 'Action: now\nAction Input: {}', "", (("now", {}),)),
        T("the last one counts", "T\nAction: a\nAction Input: 1\nAction: now\nAction Input: {}",
          "T\nAction: a\nAction Input: 1", (("now", {}),)),
        T("any string", "\nAction: now\nAction Input: a plain 'string'\n", "",
          (("now", "a plain 'string'"),)),
        T("no input", "T\nAction: now\n", "T\nAction: now\n"),
        T("final", "Thought: I now know.\nFinal Answer: 3",
          "Thought: I now know.\nFinal Answer: 3"),
        T("in other lines", "Action: yes\nand text", "Action: yes\nand text"),
        T("code", "T\nAction: now\nAction Input: {\"a\": \"\\nb\"}\n\n", "T",
          (("now", {"a": "\nb"}),)),
    ],
}  # fmt: skip
