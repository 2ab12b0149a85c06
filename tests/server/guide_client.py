"""The chat example of the usage guide, as users paste it; `START_PORT` says where the server is.

It runs in a process of its own, with whatever `openai` that Python has: the guide asks for 1.3.9.
"""

import json
import os

import openai
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionUserMessageParam

openai.base_url = f"http://localhost:{int(os.environ['START_PORT'])}/"
openai.api_key = "none"

typed_messages: list[ChatCompletionMessageParam] = [
    ChatCompletionUserMessageParam(content="Who are you?", role="user")
]

response1 = openai.chat.completions.create(model="whatever", messages=typed_messages)
print(f"response: {response1}")

typed_messages.append(response1.choices[0].message)  # pyright: ignore
typed_messages.append(
    ChatCompletionUserMessageParam(content="torch中的tensor和tensorflow有什么不同？", role="user")
)

response2 = openai.chat.completions.create(model="whatever", messages=typed_messages, stream=True)
contents = []
for res in response2:
    print(f"response: {res.model_dump_json(indent=4)}")
    contents.append(res.choices[0].delta.content or "")

# What the test looks at.
result = {
    "version": openai.__version__,
    "whole": response1.choices[0].message.content,
    "streamed": "".join(contents),
}
try:
    openai.chat.completions.create(model="x", messages=[{"role": "user", "content": "x" * 9999}])
except openai.BadRequestError as error:
    result["code"] = error.code
print(json.dumps(result))
