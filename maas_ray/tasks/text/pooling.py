"""Pooling of a text's states into its vector, as sentence-transformers' files say it.

Its releases before 6 write a flag for each way of pooling (`pooling_mode_mean_tokens`), 6 writes one name
(`pooling_mode`). Both are read. The old form is written, since all releases read it.
"""

import json
from pathlib import Path
from typing import Any, Literal

from maas_ray.errors import DataError
from maas_ray.spec import Spec

_LETTERS = " ".join("abcdefghijklmnopqrstuvwxyz")
_KNOWN: dict[tuple[str, ...], Literal["mean", "cls"]] = {("mean",): "mean", ("cls",): "cls"}


class Pooling(Spec):
    """Pooling of a text's states into its vector."""

    pooling: Literal["mean", "cls"] = "mean"
    """mean: the mean of all tokens' states. cls: the first token's state."""
    normalize: bool = True
    """Scale vectors to length 1."""

    @classmethod
    def of(cls, directory: Path) -> "Pooling | None":
        """The pooling of a model of sentence-transformers; None if the directory does not hold such a model.

        Raises:
            DataError: the model makes its vectors in a way that this task does not support.
        """
        path = directory / "modules.json"
        if not path.is_file():
            return None
        modules = json.loads(path.read_text(encoding="utf-8"))
        kinds = {module["type"].rpartition(".")[2]: module.get("path", "") for module in modules}
        unknown = kinds.keys() - {"Transformer", "Pooling", "Normalize"}
        if unknown or "Pooling" not in kinds:
            raise DataError(
                f"{path} lists modules that this task does not support: {', '.join(sorted(unknown or kinds))}.",
                code="unsupported_pooling",
            )
        modes = _modes(_read(directory / kinds["Pooling"] / "config.json"))
        if modes not in _KNOWN:
            raise DataError(
                f"{directory} pools by {' and '.join(modes) or 'nothing'}; this task supports mean or cls.",
                code="unsupported_pooling",
            )
        _check_texts(directory, directory / kinds.get("Transformer", ""))
        return cls(pooling=_KNOWN[modes], normalize="Normalize" in kinds)

    def words(self) -> str:
        """As a user writes it."""
        return f"pooling: {self.pooling}, normalize: {str(self.normalize).lower()}"

    def write(self, directory: Path, *, width: int, max_length: int) -> None:
        """Write the files that make sentence-transformers pool like this."""
        modules = ["Transformer", "Pooling", *(["Normalize"] if self.normalize else [])]
        listed = [
            {"idx": index, "name": str(index), "path": f"{index}_{module}" if index else ""}
            | {"type": f"sentence_transformers.models.{module}"}
            for index, module in enumerate(modules)
        ]
        pooling = {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": self.pooling == "cls",
            "pooling_mode_mean_tokens": self.pooling == "mean",
        }
        documents = {
            "modules.json": listed,
            "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
            "1_Pooling/config.json": pooling,
        }
        for name, document in documents.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _modes(config: dict[str, Any]) -> tuple[str, ...]:
    """The ways of pooling that a `config.json` turns on, by their names in release 6."""
    named = config.get("pooling_mode")
    if named is not None:
        return (named,) if isinstance(named, str) else tuple(named)
    prefix = "pooling_mode_"
    flags = {name.removeprefix(prefix): on for name, on in config.items() if name.startswith(prefix)}
    on = tuple(name.removesuffix("_tokens").removesuffix("_token") for name, is_on in flags.items() if is_on)
    return on or ("mean",)


def _check_texts(directory: Path, transformer: Path) -> None:
    """Refuse a model that changes texts before its tokenizer reads them, because nothing here would do so.

    Raises:
        DataError: it does.
    """
    path = transformer / "sentence_bert_config.json"
    if _read(path).get("do_lower_case") and not _lowers(directory / "tokenizer.json"):
        raise DataError(
            f"{path} says do_lower_case: true, but its tokenizer keeps capitals. Lower the case of all texts yourself, "
            "in data and in requests, and set do_lower_case to false.",
            code="unsupported_pooling",
        )
    path = directory / "config_sentence_transformers.json"
    settings = _read(path)
    prompt = (settings.get("prompts") or {}).get(settings.get("default_prompt_name"))
    if prompt:
        raise DataError(
            f"{path} puts the prompt {prompt!r} before each text (default_prompt_name). Put it there yourself, in data "
            "and in requests, and set default_prompt_name to null.",
            code="unsupported_pooling",
        )


def _lowers(path: Path) -> bool:
    """True if a tokenizer lowers the case of texts itself."""
    from tokenizers import Tokenizer

    if not path.is_file():
        return False
    tokenizer = Tokenizer.from_file(str(path))
    first, second = (tokenizer.encode(text, add_special_tokens=False).ids for text in (_LETTERS.upper(), _LETTERS))
    return bool(first == second)


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return document
