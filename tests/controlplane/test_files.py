"""Which files of a directory count, and that a change is seen however it was made."""

import asyncio
import os

import pytest

from controlplane.sources.files import FileSource
from mesh.errors import OperatorError


def document(name):
    return f"apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n"


def nodes(contents):
    return sorted(each.key.name for parsed in contents.values() for each in parsed.documents)


def test_yaml_and_json_files_count_also_in_subdirectories(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(("a.yaml", "b.yml", "c.json", "deep/d.yaml", "deep/er/e.yaml")):
        (tmp_path / name).write_text(document(f"n{number}"))
    assert nodes(FileSource(tmp_path).read()) == ["n0", "n1", "n2", "n3", "n4"]


@pytest.mark.parametrize(
    "name",
    [".a.yaml", "a.yaml~", "a.yaml.swp", "#a.yaml#", ".#a.yaml", "~a.yaml", "4913", "a.txt", "..data/a.yaml"],
)
def test_hidden_files_and_those_of_editors_do_not(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(document("n"))
    assert FileSource(tmp_path).read() == {}


def test_a_file_that_did_not_change_is_not_parsed_again(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(document(name))
    source = FileSource(tmp_path)
    first = source.read()
    (tmp_path / "b.yaml").write_text(document("changed"))
    second = source.read()
    a, b = (str(tmp_path / f"{name}.yaml") for name in ("a", "b"))
    assert second[a] is first[a]
    assert second[b] is not first[b]


def test_a_configmap_swap_is_a_change(tmp_path):
    """Kubernetes replaces the symlink ..data; the visible files are symlinks through it and keep their own inode."""
    for version in ("1", "2"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "a.yaml").write_text(document(f"n{version}"))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    source = FileSource(tmp_path)
    assert nodes(source.read()) == ["n1"]
    (tmp_path / "..new").symlink_to("..2")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    assert nodes(source.read()) == ["n2"]


def test_a_symlink_to_a_parent_ends(tmp_path):
    (tmp_path / "a.yaml").write_text(document("n"))
    (tmp_path / "loop").symlink_to(tmp_path)
    assert nodes(FileSource(tmp_path).read()) == ["n"]


def test_what_is_not_a_readable_file_is_a_finding(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    (tmp_path / "none.yaml").write_text("")
    contents = FileSource(tmp_path).read()
    assert {os.path.basename(path): parsed.broken for path, parsed in contents.items()} == {
        "pipe.yaml": True,
        "none.yaml": True,
    }


def test_a_missing_directory_is_one_sentence(tmp_path):
    with pytest.raises(OperatorError, match="missing: cannot be read: No such file or directory"):
        FileSource(tmp_path / "missing").read()


def test_a_directory_that_vanishes_keeps_its_files_and_is_a_finding(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.yaml").write_text(document("n"))
    source = FileSource(tmp_path / "c")
    source.read()
    (tmp_path / "c").rename(tmp_path / "elsewhere")
    contents, _ = asyncio.run(anext(source.changes()))
    assert nodes(contents) == ["n"]
    assert contents[str(tmp_path / "c")].findings[0].why == "cannot be read: No such file or directory"


def test_changes_come_by_themselves(tmp_path):
    async def watch():
        source = FileSource(tmp_path)
        source.read()
        changes = source.changes()
        (tmp_path / "a.yaml").write_text(document("n"))
        contents, _ = await anext(changes)
        await changes.aclose()
        return contents

    assert nodes(asyncio.run(watch())) == ["n"]


@pytest.mark.parametrize("where", ["", "deep", "new"])
def test_a_change_is_not_waited_for_until_the_rest_is_over(tmp_path, where):
    """It rings, also in a directory below, and in one that came after the first look."""
    (tmp_path / "deep").mkdir()

    async def watch():
        looked = asyncio.Event()
        source = FileSource(tmp_path, rest=lambda _: looked.set() or float("inf"))
        source.read()
        changes = source.changes()
        news = asyncio.ensure_future(anext(changes))
        await looked.wait()
        (tmp_path / where).mkdir(exist_ok=True)
        (tmp_path / where / "a.yaml").write_text(document("n"))
        contents, _ = await news
        await changes.aclose()
        return contents

    assert nodes(asyncio.run(watch())) == ["n"]
