"""Requests for text to a small model."""

from maas_ray.serve.text.types import TextRequest
from tests.support.bundles import text_task

TASK = text_task()
CHAT_ML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ask(prompt, **changes) -> TextRequest:
    return TextRequest(prompt=prompt, **({"max_tokens": 4, "seed": 1} | changes))
