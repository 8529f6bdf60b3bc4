"""What rings, however a change is made, and what does not."""

import asyncio
import os

import pytest

from mesh.bell import Bell

LONG_S, NOT_AT_ALL_S = 60.0, 0.0


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "a.yaml").write_text("old")
    (tmp_path / "deep").mkdir()
    (tmp_path / "..1").mkdir()
    (tmp_path / "..data").symlink_to("..1")
    return tmp_path


def rung(directory, change, at_most_s=LONG_S):
    async def heard():
        with Bell() as bell:
            bell.listen(str(directory))
            change(directory)
            await asyncio.sleep(0)  # the loop looks once at what is readable
            return await bell.rung(at_most_s)

    return asyncio.run(heard())


def by_rename(directory):
    (directory / ".new").write_text("new")
    os.replace(directory / ".new", directory / "a.yaml")


def by_a_swap(directory):
    (directory / "..new").symlink_to("deep")
    os.replace(directory / "..new", directory / "..data")


@pytest.mark.parametrize(
    "change",
    [
        by_rename,
        by_a_swap,
        lambda d: (d / "a.yaml").write_text("new"),
        lambda d: (d / "a.yaml").unlink(),
        lambda d: (d / "a.yaml").chmod(0o600),
        lambda d: (d / "a.yaml").rename(d / "deep" / "a.yaml"),
        lambda d: (d / "b.json").symlink_to("elsewhere"),
        lambda d: (d / "more").mkdir(),
        lambda d: (d / "deep").rmdir(),
        lambda d: d.rename(d.with_name("elsewhere")),
    ],
)
def test_a_change_rings(directory, change):
    assert rung(directory, change)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: (d / "a.yaml").read_text(),
        lambda d: (d / ".a.yaml.new").write_text("not yet"),
        lambda d: (d / "4913").write_text(""),
        lambda d: (d / "a.txt").write_text(""),
        lambda d: (d / "deep" / "a.yaml").write_text("nobody listens there"),
    ],
)
def test_what_changes_no_document_does_not(directory, change):
    assert not rung(directory, change, NOT_AT_ALL_S)


def test_it_rings_once_for_what_came_before_it_was_asked(directory):
    async def heard():
        with Bell() as bell:
            bell.listen(str(directory))
            for name in ("b.yaml", "c.yaml"):
                (directory / name).write_text("new")
            return await bell.rung(LONG_S), await bell.rung(NOT_AT_ALL_S)

    assert asyncio.run(heard()) == (True, False)


def test_what_waits_asks_nothing_and_who_asks_does_not_wait(directory):
    async def heard():
        with Bell() as bell:
            bell.listen(str(directory))
            by_rename(directory)
            return await bell.wait_rung(LONG_S), bell.rung_nowait(), bell.rung_nowait()

    assert asyncio.run(heard()) == (True, True, False)


def test_who_asks_first_keeps_it_from_nobody_who_waits(directory):
    async def heard():
        with Bell() as bell:
            bell.listen(str(directory))
            waiting = asyncio.ensure_future(bell.wait_rung(LONG_S))
            await asyncio.sleep(0)
            by_rename(directory)
            return bell.rung_nowait(), await waiting

    assert asyncio.run(heard()) == (True, True)


def test_a_directory_that_was_moved_away_rings_once_more_and_then_no_more(directory, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "deep"

    async def heard():
        with Bell() as bell:
            bell.listen(str(directory / "deep"))
            (directory / "deep").rename(elsewhere)
            moved = bell.rung_nowait(), bell.rung_nowait()
            (elsewhere / "a.yaml").write_text("nobody listens there")
            return moved, bell.rung_nowait()

    assert asyncio.run(heard()) == ((True, False), False)


def test_what_matters_is_heard_behind_whatever_does_not(directory):
    async def heard():
        with Bell() as bell:
            bell.listen(str(directory))
            for number in range(2000):
                (directory / f"{'x' * 60}-{number}.txt").touch()
            (directory / "b.yaml").write_text("new")
            return bell.rung_nowait()

    assert asyncio.run(heard())


class Kernel:
    def __init__(self, *, has_inotify):
        self.inotify_init1 = lambda flags: os.eventfd(0, flags) if has_inotify else -1
        self.inotify_add_watch = lambda *_: -1


def test_where_the_kernel_has_none_it_stays_silent_and_says_so(directory):
    async def heard():
        with Bell(Kernel(has_inotify=False)) as bell:
            return bell.listen(str(directory)), bell.rung_nowait(), await bell.rung(NOT_AT_ALL_S)

    assert asyncio.run(heard()) == (False, False, False)


def test_a_watch_that_is_refused_is_told(directory):
    async def heard():
        with Bell(Kernel(has_inotify=True)) as bell:
            return bell.listen(str(directory))

    assert asyncio.run(heard()) is False


def test_nobody_listens_before_it_is_entered_nor_after(directory):
    async def heard():
        bell = Bell()
        before = bell.listen(str(directory))
        with bell:
            during = bell.listen(str(directory))
        return before, during, bell.listen(str(directory)), bell.listen(str(directory / "nowhere"))

    assert asyncio.run(heard()) == (False, True, False, False)
