"""Samples of text, as JSON lines, from the running interpreter's standard library."""

import ast
import io
import json
import keyword
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PACKAGES = ("asyncio", "ctypes", "email", "http", "importlib", "multiprocessing", "unittest", "xml")
EXCERPT_LINES = 12
STATEMENT_LINES = 4
_KINDS = {tokenize.STRING: "STRING", tokenize.NUMBER: "NUMBER", tokenize.COMMENT: "COMMENT", tokenize.NAME: "NAME"}

Row = dict[str, Any]


def sources(*packages: str) -> Iterator[tuple[str, str]]:
    """(package, text) of every module in the named packages, or in the whole library."""
    library = Path(sysconfig.get_path("stdlib"))
    excluded = {"test", "tests", "idlelib", "site-packages", "__pycache__"}
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if excluded.isdisjoint(parts) and (not packages or parts[0] in packages):
            try:
                yield parts[0], path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a few files have other encodings


def package_rows() -> Iterator[Row]:
    """`text`, an excerpt of some lines; `label`, its package."""
    for package, text in sources(*PACKAGES):
        lines = text.splitlines()
        for start in range(0, len(lines) - EXCERPT_LINES + 1, EXCERPT_LINES):
            yield {"text": "\n".join(lines[start : start + EXCERPT_LINES]), "label": package}


def token_rows() -> Iterator[Row]:
    """`tokens`, the words and punctuation marks of a few lines; `tags`, whose spans are Python's own tokens."""
    for _, text in sources("email", "http", "json", "logging", "unittest"):
        tokens: list[str] = []
        tags: list[str] = []
        lines = 0
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            kind = "KEYWORD" if keyword.iskeyword(token.string) else _KINDS.get(token.type)
            words = _words(token.string)
            tokens += words
            tags += [f"{'I' if index else 'B'}-{kind}" if kind else "O" for index in range(len(words))]
            lines += token.type == tokenize.NEWLINE
            if lines == STATEMENT_LINES and tokens:
                yield {"tokens": tokens, "tags": tags}
                tokens, tags, lines = [], [], 0
        if tokens:
            yield {"tokens": tokens, "tags": tags}


def _words(text: str) -> list[str]:
    """Words and punctuation marks, split like the text of requests."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(text)]


def docstring_rows() -> Iterator[Row]:
    """`anchor`, the first paragraph of a function's docstring; `positive`, its code without it."""
    for _, text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and len(node.body) > 1:
                summary = (ast.get_docstring(node) or "").split("\n\n")[0]
                if len(summary.split()) >= 4:
                    node.body = node.body[1:]
                    yield {"anchor": " ".join(summary.split()), "positive": ast.unparse(node)}


def packages(directory: Path) -> Path:
    """Excerpts of the standard library, labelled by package. JSON lines."""
    return _write(package_rows(), directory / "packages.jsonl")


def python_tokens(directory: Path) -> Path:
    """Lines of the standard library, split into words and tagged by Python's tokenizer. JSON lines."""
    return _write(token_rows(), directory / "python-tokens.jsonl")


def docstrings(directory: Path) -> Path:
    """Docstrings of the standard library's functions, paired with the code. JSON lines."""
    return _write(docstring_rows(), directory / "docstrings.jsonl")


def _write(rows: Iterable[Row], path: Path) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path
