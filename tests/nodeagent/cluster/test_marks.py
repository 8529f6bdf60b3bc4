"""What the agent writes on its pods: the annotation that follows the state, and events."""

import pytest

from kube.informer import Informer
from kube.objects import PODS, Key, Metadata, Pod, PodStatus
from nodeagent.cluster.marks import ANNOTATION, Mark, Marks, difference
from tests.kube import cluster
from tests.kube.cluster import play, pod, running, until


def marked(mark, **about):
    return Metadata(name="a", uid="u", annotations={ANNOTATION: mark} if mark else None, **about)


@pytest.mark.parametrize(
    ("has", "wanted", "written"),
    [
        ("", Mark.ENABLED, "enabled"),
        ("pending", Mark.ENABLED, "enabled"),
        ("enabled", Mark.PENDING, "pending"),
        ("enabled", Mark.NONE, None),
        ("enabled", Mark.ENABLED, "nothing"),
        ("", Mark.NONE, "nothing"),
        ("enabled", None, "nothing"),
    ],
)
def test_the_annotation_follows_the_state(has, wanted, written):
    patch = difference(Pod(marked(has)), wanted)
    if written == "nothing":
        assert patch is None
    else:
        assert patch == {"metadata": {"uid": "u", "annotations": {ANNOTATION: written}}}


@pytest.mark.parametrize(
    "leaving",
    [Pod(marked("enabled", deletion_timestamp="now")), Pod(marked("enabled"), status=PodStatus(phase="Succeeded"))],
)
def test_a_pod_that_is_leaving_is_left_alone(leaving):
    assert difference(leaving, Mark.NONE) is None


class Story:
    """Marks over an informer, with the agent's opinion in `wanted`."""

    def __init__(self, api):
        self.wanted = {}
        self.informer = Informer(api.connect(), PODS, lambda _: self.marks.touch())
        self.marks = Marks(api.connect(), "node-1", lambda: self.informer.objects, lambda: self.wanted)
        self.api = api

    def of(self, name):
        return self.api.store.get(cluster.PODS, "shop", name)["metadata"].get("annotations", {}).get(ANNOTATION)

    def want(self, name, mark):
        self.wanted[Key("shop", name)] = mark
        self.marks.touch()


def tell(tmp_path, story):
    async def main(api):
        made = Story(api)
        api.create(cluster.PODS, "shop", pod("a"))
        async with running(made.informer.run(), made.marks.run()):
            await story(api, made)

    play(tmp_path, main)


def test_it_is_written_moved_and_taken_away(tmp_path):
    async def story(api, made):
        made.want("a", Mark.ENABLED)
        await until(lambda: made.of("a") == "enabled")
        made.want("a", Mark.PENDING)
        await until(lambda: made.of("a") == "pending")
        made.wanted.clear()
        made.marks.touch()
        await until(lambda: made.of("a") is None)

    tell(tmp_path, story)


def test_what_somebody_else_takes_away_comes_back(tmp_path):
    async def story(api, made):
        made.want("a", Mark.ENABLED)
        await until(lambda: made.of("a") == "enabled")
        api.change(cluster.PODS, "shop", "a", annotations={})
        await until(lambda: made.of("a") == "enabled")

    tell(tmp_path, story)


def test_a_server_that_refuses_for_a_while_is_asked_again(tmp_path):
    async def story(api, made):
        await until(lambda: api.server.watches)
        api.server._failures.append(cluster.web.json_response({"message": "busy"}, status=503))
        made.want("a", Mark.ENABLED)
        await until(lambda: made.of("a") == "enabled")

    tell(tmp_path, story)


def test_a_refusal_is_an_event_on_the_pod_and_said_once(tmp_path):
    events = cluster.BY_PATH["", "v1", "events"]

    async def story(api, made):
        await made.informer.synced.wait()
        for _ in range(3):
            made.marks.tell(Key("shop", "a"), "MeshRefused", "nft refused: no")
        await until(lambda: api.store.all(events))
        made.marks.tell(Key("shop", "a"), "MeshCutOff", "other")
        await until(lambda: len(api.store.all(events)) == 2)
        first = next(each for each in api.store.all(events) if each["reason"] == "MeshRefused")
        assert (first["type"], first["message"]) == ("Warning", "nft refused: no")
        assert first["involvedObject"]["uid"] == api.store.get(cluster.PODS, "shop", "a")["metadata"]["uid"]

    tell(tmp_path, story)
