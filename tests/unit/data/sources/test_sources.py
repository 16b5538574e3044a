import sysconfig
from pathlib import Path

import fsspec
import pytest

from maas_ray.data.plan import list_sources
from maas_ray.data.sources import AnySource, ImageFolderSource, JsonlSource, TextSource, list_files
from maas_ray.data.spec import PrepareSpec
from maas_ray.errors import DataError, SpecError
from tests.support.errors import raises


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "a.md",
        "b.txt",
        "docs/c.md",
        "docs/deep/d.md",
        "docs/tests/e.md",
        ".git/config.md",
        "docs/.hidden.md",
        "data/rows.jsonl",
        "data/ROWS.JSONL",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(source: AnySource) -> list[str]:
    return [file.relative for file in list_files(source)]


def test_a_directory_is_taken_whole_without_hidden_files(tree: Path) -> None:
    assert names(TextSource(path=str(tree))) == [
        "a.md",
        "b.txt",
        "data/ROWS.JSONL",
        "data/rows.jsonl",
        "docs/c.md",
        "docs/deep/d.md",
        "docs/tests/e.md",
    ]


def test_include_and_exclude_choose_files(tree: Path) -> None:
    assert names(TextSource(path=str(tree), include=("*.md",), exclude=("tests",))) == [
        "a.md",
        "docs/c.md",
        "docs/deep/d.md",
    ]
    assert names(TextSource(path=str(tree), include=("docs/**/*.md",), exclude=("docs/deep/*",))) == [
        "docs/c.md",
        "docs/tests/e.md",
    ]


def test_a_format_takes_its_usual_names_from_a_directory(tree: Path) -> None:
    assert names(JsonlSource(path=str(tree))) == ["data/ROWS.JSONL", "data/rows.jsonl"]


@pytest.mark.parametrize(
    ("file", "excluded"),
    [
        ("_temporary/0/_temporary/attempt_1/part-1.jsonl", "_temporary"),
        ("_delta_log/00000000000000000000.json", "_delta_log"),
        ("data/_delta_log/00000000000000000000.json", "_delta_log"),
        (".hoodie/hoodie.properties", ".hoodie"),
        ("metadata/v1.metadata.json", "metadata"),
    ],
)
def test_a_table_whose_log_decides_which_files_count_is_refused(file: str, excluded: str, tmp_path: Path) -> None:
    for name in ("part-0.jsonl", file):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with raises(DataError, "table_layout", repr(excluded)):
        list_files(JsonlSource(path=str(tmp_path)))
    files = list_files(JsonlSource(path=str(tmp_path), exclude=(excluded,)))
    assert [file.relative for file in files] == ["part-0.jsonl"]


def test_a_directory_called_metadata_is_not_a_table(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/rows.jsonl").write_text("{}")
    assert len(list_files(JsonlSource(path=str(tmp_path)))) == 1


def test_globs_start_where_the_first_pattern_does(tree: Path) -> None:
    assert names(TextSource(path=f"{tree}/docs/**/*.md")) == ["c.md", "deep/d.md", "tests/e.md"]
    assert names(TextSource(path=f"{tree}/*.md", exclude=("b*",))) == ["a.md"]


def test_a_file_given_by_path_is_taken_whatever_its_name(tree: Path) -> None:
    (file,) = list_files(TextSource(path=str(tree / "docs/.hidden.md"), include=("*.txt",)))
    assert (file.relative, file.size, file.uri) == (".hidden.md", 15, str(tree / "docs/.hidden.md"))


def test_a_path_with_glob_characters_is_taken_literally_if_it_exists(tmp_path: Path) -> None:
    (tmp_path / "a[1].md").write_text("x")
    assert names(TextSource(path=f"{tmp_path}/a[1].md")) == ["a[1].md"]


def test_links_to_files_are_files_and_links_to_directories_are_not_followed(tree: Path) -> None:
    (tree / "linked.md").symlink_to(tree / "a.md")
    (tree / "docs/circle").symlink_to(tree)
    (tree / "broken.md").symlink_to(tree / "nowhere")
    found = names(TextSource(path=str(tree), include=("*.md",), exclude=("tests", "deep")))
    assert found == ["a.md", "docs/c.md", "linked.md"]


def test_relative_paths_home_and_variables_are_expanded(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    monkeypatch.setenv("HOME", str(tree))
    monkeypatch.setenv("WHERE", "docs")
    assert names(TextSource(path="docs/deep")) == ["d.md"]
    assert names(TextSource(path="~/$WHERE/deep")) == names(TextSource(path="~/${WHERE}/deep")) == ["d.md"]
    with raises(DataError, "variable_missing", "${NOWHERE}/x", "NOWHERE"):
        list_files(TextSource(path="${NOWHERE}/x"))


def test_python_stdlib_is_the_interpreters_standard_library() -> None:
    source = TextSource(path="${PYTHON_STDLIB}/json", include=("*.py",))
    (file,) = [file for file in list_files(source) if file.relative == "decoder.py"]
    assert file.uri == str(Path(sysconfig.get_path("stdlib")) / "json/decoder.py")


def test_files_of_another_filesystem_are_listed(tree: Path) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("in/x/a.md", "in/b.md", "in/.c.md"):
        fs.pipe_file(f"/{name}", b"text")
    try:
        assert [file.uri for file in list_files(TextSource(path="memory://in"))] == [
            "memory:///in/b.md",
            "memory:///in/x/a.md",
        ]
        assert names(TextSource(path="memory://in/*.md")) == ["b.md"]
    finally:
        fs.rm("/in", recursive=True)


def test_an_error_lists_existing_files_if_none_matches(tree: Path) -> None:
    with raises(DataError, "no_files", "include ['*.rst']; existing", ".md (5), .txt (1)"):
        list_files(TextSource(path=str(tree), include=("*.rst",)))
    with raises(DataError, "path_missing", f"{tree}/nowhere"):
        list_files(TextSource(path=f"{tree}/nowhere"))
    with raises(DataError, "no_files", f"{tree}/*.rst", "none"):
        list_files(TextSource(path=f"{tree}/*.rst"))


def test_all_failing_sources_are_named_at_once(tree: Path) -> None:
    spec = PrepareSpec.parse(
        {
            "dataset": "d",
            "task": {"type": "text-generation"},
            "sources": [
                {"format": "text", "path": str(tree)},
                {"format": "text", "path": f"{tree}/x"},
                {"format": "jsonl", "path": f"{tree}/docs"},
            ],
        }
    )
    with raises(DataError, "path_missing", "sources[1]: ", "/x", "\n", "sources[2]: ", "no file matches"):
        list_sources(spec)


def test_a_failing_source_is_named_with_file_and_line(tree: Path) -> None:
    text = f"dataset: d\ntask: {{type: text-generation}}\nsources:\n  - {{format: text, path: {tree}/x}}\n"
    with raises(DataError, "path_missing", "prepare.yaml, line 4: sources[0]: ", "/x"):
        list_sources(PrepareSpec.from_text(text, source="prepare.yaml"))


def test_a_source_must_give_what_the_task_needs() -> None:
    with raises(SpecError, "unsuitable_format", "sources[0].format", "text", "image and label", "image-classification"):
        PrepareSpec.parse(
            {
                "dataset": "d",
                "task": {"type": "image-classification"},
                "sources": [{"format": "text", "path": "x"}],
            }
        )


@pytest.mark.parametrize(
    ("change", "codes", "values"),
    [
        ({"splits": {"validation": 0.5, "test": 0.5}}, ["nothing_to_train_on"], ["splits", "validation (0.5)"]),
        ({"splits": {"training": 0.5}}, ["extra_forbidden"], ["splits.training"]),
        ({"sources": []}, ["sources_empty"], ["sources"]),
        (
            {"sources": [{"format": "txt", "path": "x"}]},
            ["union_tag_invalid"],
            ["sources[0].format", "'txt'", "text, "],
        ),
        ({"sources": [{"format": "text", "paths": "x"}]}, ["missing", "extra_forbidden"], ["did you mean `path`"]),
        ({"sources": [{"format": "text", "path": "x", "x": 1}]}, ["extra_forbidden"], ["sources[0].x"]),
        ({"seed": -1}, ["greater_than_equal"], ["seed: "]),
        ({"max_quarantined": 2}, ["less_than_equal"], ["max_quarantined: "]),
    ],
)
def test_a_broken_spec_is_refused(change: dict[str, object], codes: list[str], values: list[str]) -> None:
    good = {"dataset": "d", "task": {"type": "text-generation"}, "sources": [{"format": "text", "path": "x"}]}
    PrepareSpec.parse(good)
    with raises(SpecError, codes[0], *values) as caught:
        PrepareSpec.parse(good | change)
    assert sorted(caught.value.codes) == sorted(codes)


def test_image_folders_take_files_of_images(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.JPG", "cat/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(ImageFolderSource(path=str(tmp_path))) == ["cat/1.png", "cat/2.JPG"]
