"""When a directory of documents is looked at, and when what the last look saw is answer enough."""

import asyncio
import os

import pytest

from mesh.bell import Bell
from mesh.directory import GATHER_S, HEARD_LONGEST_S, POLL_S, Directory, Look, rest_s

A_MOMENT_S = POLL_S / 2
"""Longer than five looks, shorter than any rest."""


class Deaf:
    """A kernel whose watches never ring, as at what is made on another machine; it has so many."""

    def __init__(self, watches):
        self.watches = watches

    def inotify_init1(self, flags):
        return os.eventfd(0, flags)

    def inotify_add_watch(self, *_):
        self.watches -= 1
        return 1 if self.watches >= 0 else -1


class WithoutInotify(Deaf):
    def inotify_init1(self, flags):
        return -1


DEAF = Deaf(1 << 30)


class Kept:
    """A directory that is entered, and its clock."""

    def __init__(self, path, kernel=None):
        self.path, self.now = path, 1000.0
        self.directory = Directory(path, Bell(kernel) if kernel else Bell(), lambda: self.now)
        self.seen = self.directory.files

    def sees_anew(self, after_s=A_MOMENT_S):
        before = self.seen()
        self.write("a.yaml")
        self.now += after_s
        return self.seen() is not before

    def write(self, name):
        path = self.path / name
        path.write_text(path.read_text() + "." if path.exists() else "new")


def told(path, story, kernel=None):
    async def within():
        kept = Kept(path, kernel)
        with kept.directory:
            found = story(kept)
            return await found if asyncio.iscoroutine(found) else found

    return asyncio.run(within())


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.yaml", "deep/b.yaml"):
        (tmp_path / name).write_text("old")
    return tmp_path


def test_what_did_not_ring_is_not_looked_at_again(tree):
    assert not told(tree, Kept.sees_anew, DEAF)


def test_what_rang_is_seen_at_the_next_question(tree):
    assert told(tree, Kept.sees_anew)


def test_what_did_not_ring_is_seen_when_the_rest_is_over(tree):
    assert told(tree, lambda kept: kept.sees_anew(HEARD_LONGEST_S), DEAF)


def test_who_must_know_now_looks_although_nothing_rang(tree):
    def story(kept):
        before = kept.seen()
        kept.write("a.yaml")
        return kept.directory.files_now() is not before and kept.seen() is not before

    assert told(tree, story, DEAF)


def test_as_long_as_nothing_changed_the_answer_is_the_same_object(tree):
    assert told(tree, lambda kept: kept.seen() is kept.directory.files_now())


def test_what_rings_on_and_on_is_looked_at_a_fifth_of_the_time(tree):
    def story(kept):
        (first, _), second = (kept.seen(), kept.write("a.yaml")), kept.seen()
        kept.now += A_MOMENT_S
        return first is second, kept.seen() is first

    assert told(tree, story) == (True, False)


@pytest.mark.parametrize("kernel", [WithoutInotify(9), Deaf(0), Deaf(1)], ids=["no inotify", "no watch", "one watch"])
def test_where_not_all_can_ring_every_question_is_a_look(tree, kernel):
    assert told(tree, lambda kept: kept.sees_anew(after_s=0.0), kernel)


def test_before_it_is_entered_and_after_every_question_is_a_look(tree):
    kept = Kept(tree, DEAF)
    assert kept.sees_anew(after_s=0.0)

    async def within():
        with kept.directory:
            kept.seen()

    asyncio.run(within())
    assert kept.sees_anew(after_s=0.0)


@pytest.mark.parametrize("link", ["a.yaml", "deep", "nowhere"])
def test_beside_a_link_every_question_is_a_look(tree, tmp_path_factory, link):
    """What it leads to changes without a ring."""
    there = tmp_path_factory.mktemp("elsewhere")
    if (tree / link).exists():
        (tree / link).rename(there / link)
    (tree / link).symlink_to(there / link)
    assert told(tree, lambda kept: kept.sees_anew(after_s=0.0), DEAF)


def test_where_a_link_leads_to_it_all_every_question_is_a_look(tree, tmp_path_factory):
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(tree)
    assert told(link, lambda kept: kept.sees_anew(after_s=0.0), DEAF)


def test_a_link_that_kubernetes_hides_is_of_no_weight(tree):
    (tree / "..data").symlink_to("deep")
    assert not told(tree, Kept.sees_anew, DEAF)


def test_a_mounted_configmap_that_is_swapped_wakes_who_waits(tree):
    for version in ("..1", "..2"):
        (tree / version).mkdir()
        (tree / version / "c.yaml").write_text(version)
    (tree / "..data").symlink_to("..1")
    (tree / "c.yaml").symlink_to("..data/c.yaml")
    assert told(tree, lambda kept: wakes(kept, lambda: swap(tree)))


def swap(tree):
    (tree / "..new").symlink_to("..2")
    os.replace(tree / "..new", tree / "..data")


@pytest.mark.parametrize("name", ["a.yaml", "deep/b.yaml", "deep/c.yaml"])
def test_a_change_wakes_who_waits_before_the_rest_is_over(tree, name):
    """Its clock stands still, so that no rest is ever over."""
    assert told(tree, lambda kept: wakes(kept, lambda: kept.write(name)))


def test_it_wakes_who_waits_also_when_somebody_else_asked_first(tree):
    async def story(kept):
        return await wakes(kept, lambda: (kept.write("a.yaml"), kept.directory.files_now()))

    assert told(tree, story)


async def wakes(kept, change):
    seen = await kept.directory.wait_changed(None)
    kept.now += A_MOMENT_S
    waiting = asyncio.ensure_future(kept.directory.wait_changed(seen))
    await asyncio.sleep(0)
    assert not waiting.done()
    change()
    kept.now += A_MOMENT_S / 2
    return await waiting is not seen


def test_a_directory_that_is_not_there_yet_is_found_when_it_comes(tmp_path):
    def story(kept):
        before = dict(kept.seen())
        kept.path.mkdir()
        kept.write("a.yaml")
        return before, list(kept.seen())

    assert told(tmp_path / "late", story) == ({}, [str(tmp_path / "late/a.yaml")])


def test_a_link_to_itself_is_no_document(tree):
    (tree / "itself.yaml").symlink_to("itself.yaml")
    assert list(Directory(tree).files()) == [str(tree / "a.yaml"), str(tree / "deep/b.yaml")]


def test_only_regular_files_count(tree):
    os.mkfifo(tree / "pipe.yaml")
    (tree / "gone.yaml").symlink_to("nowhere")
    assert list(Directory(tree).files()) == [str(tree / "a.yaml"), str(tree / "deep/b.yaml")]


@pytest.mark.parametrize(
    ("hears", "work_s", "rests_s"),
    [
        (True, 0.0, 0.03),
        (True, 0.0002, 0.1),
        (True, 0.004, 2.0),
        (True, 3.0, 5.0),
        (False, 0.0, 0.03),
        (False, 0.004, 0.08),
        (False, 0.02, 0.4),
        (False, 3.0, 0.5),
    ],
)
def test_the_rest_between_two_looks_grows_with_their_work_up_to_a_limit(hears, work_s, rests_s):
    assert rest_s(Look({}, hears, work_s), 0.03) == pytest.approx(rests_s)
    assert rest_s(Look({}, hears, work_s)) >= POLL_S > GATHER_S
