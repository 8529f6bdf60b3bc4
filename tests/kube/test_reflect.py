"""The list-and-watch conversation, as it is told: what the server says, what changed, what is asked next."""

from kube.objects import Key, Metadata, Object
from kube.reflect import Change, ListPage, Reflection, Watch


def item(name, version):
    return Object(Metadata(name=name, namespace="shop", resource_version=str(version)))


def names(changes):
    return [(each.key.name, each.before and each.before.version, each.after and each.after.version) for each in changes]


def synced(*items, version="10", **how):
    reflection = Reflection(**how)
    reflection.page(items, version, "")
    return reflection


def test_pages_count_when_the_last_one_is_there():
    reflection = Reflection()
    assert reflection.next() == ListPage(None, "")
    assert reflection.page([item("a", 1)], "10", "more") == []
    assert (reflection.objects, reflection.synced, reflection.next()) == ({}, False, ListPage(None, "more"))
    assert names(reflection.page([item("b", 2)], "10", "")) == [("a", None, "1"), ("b", None, "2")]
    assert (reflection.synced, reflection.next()) == (True, Watch("10"))


def test_events_change_objects_and_move_the_version():
    reflection = synced(item("a", 1))
    assert names(reflection.event("ADDED", item("b", 11))) == [("b", None, "11")]
    assert names(reflection.event("MODIFIED", item("a", 12))) == [("a", "1", "12")]
    assert names(reflection.event("DELETED", item("b", 13))) == [("b", "11", None)]
    assert reflection.event("DELETED", item("b", 14)) == []
    assert reflection.next() == Watch("14")
    assert list(reflection.objects) == [Key("shop", "a")]


def test_what_is_known_already_or_not_understood_changes_nothing():
    reflection = synced(item("a", 1))
    assert reflection.event("MODIFIED", item("a", 1)) == []
    assert reflection.event("SOMETHING", item("b", 20)) == []
    reflection.bookmark("30")
    assert reflection.next() == Watch("30")


def test_a_broken_watch_goes_on_where_it_was_and_a_broken_list_starts_again():
    reflection = synced(item("a", 1))
    reflection.broken()
    assert reflection.next() == Watch("10")
    reflection.expired()
    reflection.page([item("b", 20)], "20", "more")
    reflection.broken()
    assert reflection.next() == ListPage(None, "")
    assert list(reflection.objects) == [Key("shop", "a")]


def test_after_410_the_new_list_tells_what_was_missed_and_keeps_what_is_the_same():
    same, changed, gone = item("same", 1), item("changed", 2), item("gone", 3)
    reflection = synced(same, changed, gone)
    reflection.expired()
    changes = reflection.page([item("same", 1), item("changed", 20), item("new", 21)], "30", "")
    assert names(changes) == [("changed", "2", "20"), ("new", None, "21"), ("gone", "3", None)]
    assert reflection.objects[same.key] is same
    assert changes[-1] == Change(gone.key, gone, None)


def test_only_the_first_list_may_come_from_a_cache():
    reflection = Reflection(cached=True)
    assert reflection.next() == ListPage("0", "")
    reflection.page([], "10", "")
    reflection.expired()
    assert reflection.next() == ListPage(None, "")


def test_a_kind_that_the_server_does_not_have_is_empty_unless_it_had_objects():
    fresh, held = Reflection(), synced(item("a", 1))
    assert (fresh.absent(), fresh.synced) == (True, True)
    assert (held.absent(), len(held.objects), held.next()) == (False, 1, ListPage(None, ""))
