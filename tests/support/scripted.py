"""A generating replica whose engine says what a script says: the true path from HTTP to tokens, without a model."""

from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.middleware import App
from maas_ray.serve.model_app import Generator
from maas_ray.serve.replicas.direct import SingleModel
from maas_ray.serve.text.codec import TextCodec
from maas_ray.serve.text.types import GenerateRequest, Tokens
from maas_ray.tasks.text.chat import MARKED
from maas_ray.tasks.text.generation import TextGeneration, TextGenerationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from tests.support.models import route

Script = Callable[[str], str]
"""The answer to a prompt, as text in which special tokens are spelled out."""


class ScriptedEngine:
    """An engine that tokenises what the script says.

    Args:
        task: the model's task.
        script: the answers.
    """

    supports = frozenset({"json_schema"})

    def __init__(self, task: TextGeneration, script: Script) -> None:
        self._script = script
        self._tokenizer = type(task.tokenizer).from_str(task.tokenizer.to_str())
        self.asked: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        self.asked.append(request)
        prompt = self._tokenizer.decode(request.prompt_ids, skip_special_tokens=False)
        answer = self._tokenizer.encode(self._script(prompt), add_special_tokens=False).ids
        for token in [*answer, request.end_ids[0]]:
            yield Tokens([token])

    def close(self) -> None:
        """Nothing to close."""


def chat_task(directory: Path, special: Sequence[str] = (), template: str = MARKED) -> TextGeneration:
    """A task for chats, whose tokenizer has these special tokens and this template."""
    from tokenizers import Tokenizer

    rows = [{"messages": f'[{{"role": "user", "content": {text!r}}}]'.replace("'", '"')} for text in ("a", "b")]
    fitted = TextGenerationSpec(column="messages", tokenizer=FittedTokenizer(vocab_size=300)).fit(rows)
    fitted.save_state(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return TextGenerationSpec(column="messages", tokenizer=str(directory)).fit([])


def scripted_app(task: TextGeneration, script: Script, **options: Any) -> tuple[App, ScriptedEngine]:
    """The HTTP application over a scripted replica named `m`, and its engine.

    Args:
        task: the model's task.
        script: the answers.
        options: of the codec.
    """
    engine = ScriptedEngine(task, script)
    replica = Generator.__new__(Generator)  # without the constructor, which loads a bundle
    replica.in_progress = 0
    replica._engine, replica._codec = engine, TextCodec(task, 10_000, (), engine.supports, **options)
    return create_app(SingleModel(replica, route("m", "generate")), body_limit=1_000_000), engine
