"""Makes greedy.json: what transformers answers, in float32, on the embedded model.

python -m tests.e2e.make_greedy (needs torch)
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints_conv.package_models import ensure_model

PROMPTS = [
    ("Who are you?", 60),
    ("What is the capital of France?", 40),
    ("Write a haiku about the sea.", 60),
    ("List five prime numbers.", 60),
    ("torch中的tensor和tensorflow有什么不同？", 40),
    ("def fibonacci(n):", 60),
    ("Say only: 🙂🙃", 30),
    (" ".join(f"{i} plus {i} is {2 * i}." for i in range(60)) + " What is 7 plus 7?", 20),
]


def main() -> None:
    folder = ensure_model(Path("~/.cache/rtpjax").expanduser())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    cases = []
    for prompt, max_tokens in PROMPTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        with torch.no_grad():
            output = model.generate(torch.tensor([ids]), max_new_tokens=max_tokens, do_sample=False)
        answer = output[0, len(ids) :].tolist()
        is_stop = answer[-1] == tokenizer.eos_token_id
        cases.append(
            {
                "prompt": prompt,
                "max_tokens": max_tokens,
                "prompt_tokens": len(ids),
                "completion_tokens": len(answer),
                "finish_reason": "stop" if is_stop else "length",
                "text": tokenizer.decode(answer, skip_special_tokens=True),
            }
        )
    path = Path(__file__).parent / "greedy.json"
    path.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
