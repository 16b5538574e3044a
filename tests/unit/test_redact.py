"""Passwords and signatures of URLs reach no error and no terminal."""

import pickle

import pytest

from maas_ray.errors import SpecError, StorageError
from maas_ray.redact import hide_secrets, without_secrets
from maas_ray.terminal.lines import new_table, print_json, say, show_table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+pg8000://maas:hunter2@db:5432/maas", "postgresql+pg8000://maas:***@db:5432/maas"),
        ("'postgresql://maas:p@ss@db/maas' failed", "'postgresql://maas:***@db/maas' failed"),
        ("postgresql://maas:pa/ss@db/maas", "postgresql://maas:***@db/maas"),
        ("postgresql://maas@db/maas?password=hunter2&sslmode=require", "…maas?password=***&sslmode=require"),
        ("https://blob/x.csv?sv=2024&sig=aB%3D&se=2027", "https://blob/x.csv?sv=2024&sig=***&se=2027"),
        ("https://b.s3/x?X-Amz-Signature=ab12&X-Amz-Credential=AK/1", "…?X-Amz-Signature=***&X-Amz-Credential=***"),
        ("https://h/x?api_key=k; then", "https://h/x?api_key=***; then"),
        ("ftp://:secret@h/x and s3://bucket/a", "ftp://:***@h/x and s3://bucket/a"),
        ("postgresql://reader:${DB_PASSWORD}@db/shop?sslpassword=${KEY}", None),
        ("http://host:8000/v2/models/a@b", None),
        ("http://localhost:8265?design=1", None),
        ("mail ann:x@example.com", None),
        ("s3://bucket/key=1/part?x=2", None),
    ],
)
def test_secrets_are_hidden_and_nothing_else(text: str, shown: str | None) -> None:
    assert hide_secrets(text).endswith((text if shown is None else shown).removeprefix("…"))
    assert hide_secrets(hide_secrets(text)) == hide_secrets(text)


def test_errors_and_lines_show_none(capsys: pytest.CaptureFixture[str]) -> None:
    url = "postgresql://maas:hunter2@db/maas"
    error = StorageError(f"{url} cannot be used")
    problems = SpecError("x.yaml", [f"sources.0.url: {url}"])
    say(url)
    for shown in (
        str(error),
        repr(error),
        str(pickle.loads(pickle.dumps(error))),
        *problems.problems,
        str(problems),
        capsys.readouterr().out,
    ):
        assert "hunter2" not in shown
        assert "postgresql://maas:***@db/maas" in shown


def test_documents_and_tables_show_none(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"runs": [{"path": "sftp://ann:hunter2@host/x"}, 3, None], "url": ("https://h/x?sig=hunter2",)}
    assert without_secrets(document) == {
        "runs": [{"path": "sftp://ann:***@host/x"}, 3, None],
        "url": ["https://h/x?sig=***"],
    }
    print_json(document)
    table = new_table("URI")
    table.add_row("sftp://ann:hunter2@host/x")
    show_table(table)
    shown = capsys.readouterr().out
    assert shown.count("sftp://ann:***@host/x") == 2
    assert "hunter2" not in shown
