"""Data for the text tasks that every machine has: the running interpreter's standard library, as JSON lines.

python jobs/datasets_text.py packages data/packages      {"text", "label"}      which package an excerpt is from
python jobs/datasets_text.py python-tokens data/tokens   {"tokens", "tags"}     what Python's tokenizer calls them
python jobs/datasets_text.py docstrings data/docstrings  {"anchor", "positive"} a docstring, and what it describes
"""

import argparse
import ast
import io
import json
import keyword
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PACKAGES = ("asyncio", "ctypes", "email", "http", "importlib", "multiprocessing", "unittest", "xml")
EXCERPT_LINES = 12
STATEMENT_LINES = 4
_KINDS = {tokenize.STRING: "STRING", tokenize.NUMBER: "NUMBER", tokenize.COMMENT: "COMMENT", tokenize.NAME: "NAME"}

Row = dict[str, Any]


def sources(*packages: str) -> Iterator[tuple[str, str]]:
    """(package, text) of every module: of the named packages, or of the whole library."""
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idlelib", "site-packages", "__pycache__"}
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if left_out.isdisjoint(parts) and (not packages or parts[0] in packages):
            try:
                yield parts[0], path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a few are in other encodings


def packages() -> Iterator[Row]:
    """Excerpts of some lines each, with the package they are from."""
    for package, text in sources(*PACKAGES):
        lines = text.splitlines()
        for start in range(0, len(lines) - EXCERPT_LINES + 1, EXCERPT_LINES):
            yield {"text": "\n".join(lines[start : start + EXCERPT_LINES]), "label": package}


def python_tokens() -> Iterator[Row]:
    """A few lines each, cut into words and punctuation marks; spans are Python's own tokens."""
    for _, text in sources("email", "http", "json", "logging", "unittest"):
        tokens: list[str] = []
        tags: list[str] = []
        lines = 0
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            kind = "KEYWORD" if keyword.iskeyword(token.string) else _KINDS.get(token.type)
            words = _words(token.string)
            tokens += words
            tags += [f"{'I' if place else 'B'}-{kind}" if kind else "O" for place in range(len(words))]
            lines += token.type == tokenize.NEWLINE
            if lines == STATEMENT_LINES and tokens:
                yield {"tokens": tokens, "tags": tags}
                tokens, tags, lines = [], [], 0
        if tokens:
            yield {"tokens": tokens, "tags": tags}


def _words(text: str) -> list[str]:
    """As requests of plain text are cut: words, and each punctuation mark."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(text)]


def docstrings() -> Iterator[Row]:
    """The first paragraph of a function's docstring, and its code without it."""
    for _, text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and len(node.body) > 1:
                said = (ast.get_docstring(node) or "").split("\n\n")[0]
                if len(said.split()) >= 4:
                    node.body = node.body[1:]
                    yield {"anchor": " ".join(said.split()), "positive": ast.unparse(node)}


GENERATORS: dict[str, Callable[[], Iterator[Row]]] = {
    "packages": packages,
    "python-tokens": python_tokens,
    "docstrings": docstrings,
}


def write(name: str, directory: Path) -> Path:
    """Write a data set's rows; the file they are in."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in GENERATORS[name]():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=GENERATORS)
    parser.add_argument("directory", type=Path)
    asked = parser.parse_args()
    print(write(asked.name, asked.directory))


if __name__ == "__main__":
    main()
