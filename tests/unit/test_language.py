"""Prose in code, help and documentation follows docs/style.md, as far as a program can check it."""

import ast
import io
import re
import subprocess
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main

from tests.support import ROOT

HEADLESS = re.compile(r"(?i)(what|of|whether|such|where)\b")
MAX_LINE = 120
MESSAGES = {"Problem", "refuse"}
"""Functions beside exceptions whose string arguments are error messages."""

FINITE = (
    "is are was were be has have had do does did can may must shall will would cannot goes gets becomes holds "
    "stays comes takes needs moves starts ends fails waits answers serves reads cleans prints runs selects configures "
    "listens checks reuse load come finish start stay show"
)
IMPERATIVE = (
    "Accept Add Allow Apply Bring Build Call Change Check Choose Compare Compute Continue Copy Count Create "
    "Delete Deploy Describe Do Drop End Evaluate Exit Export Find Finish Follow Give Ignore Include Install Join "
    "Keep Leave Let Limit List Load Look Make Measure Merge Move Name Open Override Pass Point Predict Prepare "
    "Print Process Promote Put Read Rebuild Reconcile Register Remove Repeat Replace Report Require Resolve "
    "Restart Restore Resume Retry Return Reuse Roll Route Run Save See Select Send Serve Set Show Skip Sort Split "
    "Start Stay Stop Store Summarise Tail Take Train Turn Undo Update Use Validate Wait Warn Watch Write"
)
VERB = re.compile(rf"^({IMPERATIVE.replace(' ', '|')})\b|\b({FINITE.replace(' ', '|')})\b")
"""A sentence with a verb begins with an imperative or holds a finite verb of these lists; both may grow."""


def room_of(path: Path) -> str:
    """The folder that answers for a file: `maas_ray/data`, `tests/unit/serve`; a page answers for itself."""
    parts = path.relative_to(ROOT).parts
    if path.suffix == ".md":
        return "/".join(parts)
    depth = 3 if parts[:2] in (("tests", "unit"), ("tests", "integration"), ("maas_ray", "serve")) else 2
    depth += parts[:3] == ("tests", "unit", "serve")
    return "/".join(parts[: min(depth, len(parts) - 1)])


def tracked(pattern: str) -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return [ROOT / name for name in sorted(names) if name and (ROOT / name).is_file()]


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Docstrings of modules, classes and functions, and strings that stand below attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """String literals that errors are raised with."""
    for node in ast.walk(tree):
        calls = [node.exc] if isinstance(node, ast.Raise) else [node]
        for call in calls:
            if not isinstance(call, ast.Call):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if isinstance(node, ast.Raise) or name in MESSAGES:
                for argument in call.args:
                    if text := opening(argument):
                        yield argument.lineno, text


def opening(node: ast.expr) -> str:
    """The text that a string literal or an f-string begins with."""
    if isinstance(node, ast.JoinedStr) and node.values:
        return opening(node.values[0])
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Comments; of comments on successive lines the first."""
    previous = (-1, -1)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            if previous != (row - 1, column):
                yield row, token.string.lstrip("# ")
            previous = (row, column)


def wide_prose(text: str) -> Iterator[int]:
    """Lines of Markdown over the limit, apart from tables, code and lines that are a single address."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and len(line) > MAX_LINE and " " in line.strip() and line.lstrip()[:1] not in ("|", "<"):
            yield number


def faults(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    place = path.relative_to(ROOT).as_posix()
    if path.suffix == ".md":
        for line in wide_prose(text):
            yield f"{place}:{line}: prose over {MAX_LINE} characters"
        return
    tree = ast.parse(text)
    for kind, pieces in (("docstring", docstrings(tree)), ("error", messages(tree)), ("comment", comments(text))):
        for line, piece in pieces:
            if found := HEADLESS.match(piece.strip()):
                yield f"{place}:{line}: a {kind} begins with {found[0]!r}; begin with the thing itself"


def rooms() -> dict[str, list[Path]]:
    by_room: dict[str, list[Path]] = defaultdict(list)
    for path in tracked("*.py") + tracked("*.md"):
        by_room[room_of(path)].append(path)
    return dict(by_room)


@pytest.mark.parametrize("room", sorted(rooms()))
def test_prose_begins_with_its_subject_and_fits_the_line(room: str) -> None:
    found = [fault for path in rooms()[room] for fault in faults(path)]

    assert not found, "\n".join(found)


# --- help of the command line ----------------------------------------------------------------------


def helps() -> Iterator[tuple[str, str]]:
    """The help of every command and option. An argument's help is a noun phrase and is not checked."""
    from maas_ray.cli import app

    def walk(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
        yield name, command.help or ""
        for parameter in command.params:
            if getattr(parameter, "param_type_name", "") == "option":
                yield f"{name} {parameter.opts[0]}", getattr(parameter, "help", "") or ""
        for child, below in getattr(command, "commands", {}).items():
            yield from walk(below, f"{name} {child}")

    return walk(typer.main.get_command(app), "maas")


def sentences(text: str) -> Iterator[str]:
    """Sentences of help; paragraphs of examples and defaults are none."""
    for paragraph in re.split(r"\n\s*\n", text.replace("\b", "")):
        lines = [line.strip() for line in paragraph.strip().splitlines()]
        if lines and not (lines[0].endswith(":") and len(lines) > 1):
            for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(lines)):
                if not sentence.startswith("Default:"):
                    yield sentence


def test_every_sentence_of_help_has_a_verb() -> None:
    without = [f"{name}: {line!r}" for name, text in helps() for line in sentences(text) if not VERB.search(line)]
    empty = [name for name, text in helps() if not text]

    assert not without, "\n".join(without)
    assert not empty, empty


# --- the rules themselves --------------------------------------------------------------------------


def test_headless_prose_is_recognised() -> None:
    code = '"""What it is."""\n# of those\n# such rows\nx = 1\nraise ValueError(f"where {x}")\n'
    tree = ast.parse(code)

    pieces = [*docstrings(tree), *messages(tree), *comments(code)]
    assert [line for line, piece in pieces if HEADLESS.match(piece)] == [1, 5, 2]
    assert not HEADLESS.match("Offset of a row")
    assert not HEADLESS.match("whatever")


def test_a_sentence_without_a_verb_is_recognised() -> None:
    assert not VERB.search("Public name.")
    assert not VERB.search("Rows of each kind.")
    assert VERB.search("Print JSON.")
    assert VERB.search("A report is written.")
