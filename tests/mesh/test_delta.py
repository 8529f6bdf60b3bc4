"""The conversation told from both sides, and the promise that ties them together."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.delta import PARTIAL, Acked, Nacked, Publisher, Subscribed, Subscriber, Versioned, head_of
from mesh.errors import PeerError
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status
from tests.playbook import nothing, play
from ztunnel.dataplane import read_response

T, U = "type/T", "type/U"
NODE = Node(id="ztunnel~1")


def item(version, type_url=T):
    return Versioned(version, type_url, b"data " + version.encode())


def world(**versions):
    return {name: item(version) for name, version in versions.items()}


def request(type_url=T, nonce="", why=None, subscribe=(), unsubscribe=(), **held):
    error = Status(message=why) if why else None
    return DeltaDiscoveryRequest(
        type_url=type_url,
        response_nonce=nonce,
        error_detail=error,
        resource_names_subscribe=subscribe,
        resource_names_unsubscribe=unsubscribe,
        initial_resource_versions=held,
    )


def response(nonce, removed=(), type_url=T, info="", **versions):
    made = DeltaDiscoveryResponse(type_url=type_url, nonce=nonce, removed_resources=removed, system_version_info=info)
    for name, version in versions.items():
        resource = Resource(name=name, version=version)
        resource.resource.type_url = type_url
        resource.resource.value = b"data " + version.encode()
        made.resources.append(resource)
    return made


def read(sent):
    """As any client would; what a server keeps in mind of what it sent is in it, too."""
    made = DeltaDiscoveryResponse.FromString(sent.data)
    assert (sent.type_url, sent.nonce) == (made.type_url, made.nonce)
    return made


class Server:
    """What a server does around a Publisher: offers the world when asked or changed, goes on when answered."""

    def __init__(self, max_resources=500, **versions):
        self.publisher, self.world = Publisher(max_resources), world(**versions)

    def handle(self, event):
        if isinstance(event, dict):
            self.world = event
            return self.said(self.publisher.offer(T, event))
        commands = self.publisher.handle(event)
        for outcome in list(commands):
            if isinstance(outcome, Subscribed):
                commands += self.said(self.publisher.offer(event.type_url, self.world if event.type_url == T else {}))
            else:
                commands += self.said(self.publisher.next(event.type_url))
        return commands

    def said(self, response):
        return [] if response is None else [read(response)]


def heard(subscriber, response):
    return subscriber.receive(read_response(response.SerializeToString()))


class Client:
    """What a client does around a Subscriber that refuses every version in `bad`."""

    def __init__(self, *bad, held=None):
        self.bad, self.subscriber = bad, Subscriber(NODE, [T], held)

    def handle(self, event):
        if event == "connect":
            return self.subscriber.start()
        batch = heard(self.subscriber, event)
        refused = [(name, f"{version} is bad") for name, version, _ in batch.upserts if version in self.bad]
        return [self.subscriber.settle(batch, refused)]


def hello(**held):
    first = request(**held)
    first.node.CopyFrom(NODE)
    return first


def test_a_server_sends_everything_once_then_only_what_changed():
    assert (
        play(Server(a="1", b="1"))
        >> request()
        << Subscribed(T)
        << response("1", a="1", b="1")
        >> request(nonce="1")
        << Acked(T, "1")
        >> world(a="2", b="1")
        << response("2", a="2")
        >> request(nonce="2")
        << Acked(T, "2")
        >> world(a="2")
        << response("3", removed=["b"])
    )


def test_an_empty_world_is_said_too_so_that_the_client_gets_ready():
    assert play(Server()) >> request() << Subscribed(T) << response("1") >> request(nonce="1") << Acked(T, "1")


def test_a_client_that_comes_back_is_told_only_the_difference():
    assert (
        play(Server(a="1", b="2"))
        >> request(a="1", b="1", gone="9")
        << Subscribed(T)
        << response("1", removed=["gone"], b="2")
    )


def test_a_large_world_goes_out_in_parts_and_removals_last():
    assert (
        play(Server(max_resources=2, a="1", b="1", c="1"))
        >> request(old="1")
        << Subscribed(T)
        << response("1", info=PARTIAL, a="1", b="1")
        >> request(nonce="1")
        << Acked(T, "1")
        << response("2", removed=["old"], c="1")
    )


def test_while_an_answer_is_due_nothing_more_is_sent_and_then_the_latest_world():
    assert (
        play(Server(a="1"))
        >> request()
        << Subscribed(T)
        << response("1", a="1")
        >> world(a="2")
        << nothing
        >> world(a="3")
        << nothing
        >> request(nonce="1")
        << Acked(T, "1")
        << response("2", a="3")
    )


def test_what_was_refused_is_not_sent_again_until_it_changes():
    assert (
        play(Server(a="bad", b="1"))
        >> request()
        << Subscribed(T)
        << response("1", a="bad", b="1")
        >> request(nonce="1", why="a: bad")
        << Nacked(T, "1", "a: bad")
        >> world(a="bad", b="1")
        << nothing
        >> world(a="good", b="1")
        << response("2", a="good")
    )


def test_an_answer_to_an_older_response_answers_nothing():
    assert (
        play(Server(a="1"))
        >> request(nonce="of an earlier stream")
        << Subscribed(T)
        << response("1", a="1")
        >> request(nonce="of an earlier stream", why="late")
        << nothing
        >> request(nonce="1")
        << Acked(T, "1")
        >> request(nonce="1")
        << nothing
    )


def test_a_type_nobody_serves_is_an_empty_world():
    assert play(Server(a="1")) >> request(U) << Subscribed(U) << response("1", type_url=U)


def test_a_request_without_a_type_is_the_clients_fault():
    with pytest.raises(PeerError, match="type_url"):
        Publisher().handle(request(""))


def test_nothing_is_offered_of_a_type_the_client_never_asked_for():
    assert Publisher().offer(T, world(a="1")) is None
    assert Publisher().next(T) is None


def test_named_resources_only_and_the_absent_ones_are_said_to_be_absent():
    assert (
        play(Server(a="1", b="1"))
        >> request(subscribe=["a", "x"])
        << Subscribed(T)
        << response("1", removed=["x"], a="1")
        >> request(nonce="1", subscribe=["b"])
        << Subscribed(T)
        << Acked(T, "1")
        << response("2", b="1")
        >> request(nonce="2", unsubscribe=["a"])
        << Subscribed(T)
        << Acked(T, "2")
        >> world(a="2", b="1")
        << nothing
        >> request(subscribe=["b"])
        << Subscribed(T)
        << response("3", b="1")
    )


def test_on_demand_starts_with_nothing():
    assert (
        play(Server(a="1", b="1"))
        >> request(subscribe=["*"], unsubscribe=["*"])
        << Subscribed(T)
        << response("1")
        >> request(nonce="1", subscribe=["b"])
        << Subscribed(T)
        << Acked(T, "1")
        << response("2", b="1")
    )


def test_a_name_given_up_under_a_wildcard_is_sent_again():
    assert (
        play(Server(a="1"))
        >> request(subscribe=["*", "a", "x"])
        << Subscribed(T)
        << response("1", removed=["x"], a="1")
        >> request(nonce="1", unsubscribe=["a", "x"])
        << Subscribed(T)
        << Acked(T, "1")
        << response("2", removed=["x"], a="1")
    )


def test_a_client_acknowledges_what_it_took_and_resumes_from_there():
    assert (
        play(Client())
        >> "connect"
        << hello()
        >> response("1", a="1", b="1")
        << request(nonce="1")
        >> response("2", removed=["b"], a="2")
        << request(nonce="2")
        >> "connect"
        << hello(a="2")
    )


def test_a_client_says_what_it_refused_and_keeps_the_older_version_on_record():
    assert (
        play(Client("bad", "worse"))
        >> "connect"
        << hello()
        >> response("1", a="1")
        << request(nonce="1")
        >> response("2", a="bad", b="worse", c="1")
        << request(nonce="2", why="a: bad is bad; b: worse is bad")
        >> "connect"
        << hello(a="1", c="1", b="")
    )


def test_a_refusal_does_not_outlive_what_was_refused():
    assert (
        play(Client("bad"))
        >> "connect"
        << hello()
        >> response("1", a="bad", b="bad", c="bad")
        << request(nonce="1", why="a: bad is bad; b: bad is bad; c: bad is bad")
        >> response("2", a="1", removed=["b"])
        << request(nonce="2")
        >> "connect"
        << hello(a="1", c="")
    )
    server = play(Server(a="1")) >> hello(a="1", c="")
    assert server << Subscribed(T) << response("1", removed=["c"])


def test_a_client_starts_from_what_it_held_in_an_earlier_life():
    assert play(Client(held={T: {"a": "1"}})) >> "connect" << hello(a="1")


def test_a_client_is_in_step_once_every_type_was_acknowledged():
    client = Subscriber(NODE, [T, U])
    client.settle(heard(client, response("1", a="bad")), [("a", "bad")])
    client.settle(heard(client, response("2", type_url=U)))
    assert not client.synced
    client.settle(heard(client, response("3", info=PARTIAL, a="1")))
    assert not client.synced, "more follows"
    client.settle(heard(client, response("4", b="1")))
    assert client.synced


def test_a_type_nobody_asked_for_is_acknowledged_and_not_applied():
    client = Subscriber(NODE, [T])
    batch = heard(client, response("1", type_url=U, a="1"))
    assert not batch.wanted
    assert client.settle(batch) == request(U, nonce="1")


def test_a_resource_of_another_type_than_announced_is_refused():
    client = Subscriber(NODE, [T])
    odd = response("1", a="1")
    odd.resources[0].resource.type_url = U
    batch = heard(client, odd)
    assert batch.upserts == []
    assert client.settle(batch) == request(nonce="1", why="a: is of type type/U")


class Counted(dict):
    """A world that counts how often it is asked for anything."""

    asked = 0

    def __getitem__(self, name):
        self.asked += 1
        return super().__getitem__(name)

    def __contains__(self, name):
        self.asked += 1
        return super().__contains__(name)

    def items(self):
        for each in super().items():
            self.asked += 1
            yield each


def test_an_offer_that_names_what_changed_costs_what_changed():
    publisher, big = Publisher(max_resources=5000), {f"r{n}": item("1") for n in range(5000)}
    publisher.handle(DeltaDiscoveryRequest(type_url=T))
    first = publisher.offer(T, big)
    assert len(read(first).resources) == 5000
    publisher.handle(DeltaDiscoveryRequest(type_url=T, response_nonce=first.nonce))
    after = Counted(big | {"r7": item("2"), "new": item("1")})
    dict.pop(after, "r9")
    response = read(publisher.offer(T, after, {"r7", "r9", "new"}))
    assert {each.name for each in response.resources} == {"r7", "new"}
    assert list(response.removed_resources) == ["r9"]
    assert after.asked < 30


def test_a_part_costs_what_is_in_it_not_what_the_world_has():
    publisher, big = Publisher(max_resources=10), Counted({f"r{n}": item("1") for n in range(5000)})
    publisher.handle(DeltaDiscoveryRequest(type_url=T))
    first = publisher.offer(T, big)
    assert len(read(first).resources) == 10
    assert big.asked < 30
    publisher.handle(DeltaDiscoveryRequest(type_url=T, response_nonce=first.nonce))
    assert len(read(publisher.next(T)).resources) == 10
    assert big.asked < 60


def test_what_changes_between_two_parts_is_sent_once_and_what_was_not_looked_at_yet_still_comes():
    server = Server(max_resources=1, a="1", b="1", c="1", d="1")
    assert (
        play(server)
        >> request(old="1")
        << Subscribed(T)
        << response("1", info=PARTIAL, a="1")
        >> request(nonce="1")
        << Acked(T, "1")
        << response("2", info=PARTIAL, b="1")
    )
    server.world = world(a="1", b="2", d="1", e="1")
    assert server.publisher.offer(T, server.world, {"b", "c", "e"}) is None
    assert (
        play(server)
        >> request(nonce="2")
        << Acked(T, "2")
        << response("3", info=PARTIAL, b="2")
        >> request(nonce="3")
        << Acked(T, "3")
        << response("4", info=PARTIAL, d="1")
        >> request(nonce="4")
        << Acked(T, "4")
        << response("5", removed=["old"], e="1")
    )


def test_a_response_ends_with_the_resource_that_makes_it_too_long_for_grpc():
    publisher = Publisher()
    publisher.handle(DeltaDiscoveryRequest(type_url=T))
    response = publisher.offer(T, {f"r{n}": Versioned("1", T, b"x" * 1_000_000) for n in range(10)})
    assert len(read(response).resources) == 3
    assert len(response.data) < 4 * 1024 * 1024


@given(st.text(), st.text(max_size=200), st.text(), st.sampled_from((0, 1, 100, 127, 128, 16_200, 16_384, 70_000)))
def test_a_head_and_its_data_are_a_resource_as_the_library_reads_it(name, version, type_url, size):
    data = b"x" * size
    made = DeltaDiscoveryResponse()
    content = made.resources.add(name=name, version=version).resource
    content.type_url, content.value = type_url, data
    head = head_of(name, version, type_url, size)
    assert DeltaDiscoveryResponse.FromString(head + data) == made


def test_what_has_its_head_is_sent_as_what_has_none():
    heads = {name: head_of(name, "1", T, len(item("1").data)) for name in ("a", "b")}
    ready = {name: Versioned("1", T, item("1").data, head) for name, head in heads.items()}
    server = Server()
    server.world = ready
    assert play(server) >> request() << Subscribed(T) << response("1", a="1", b="1")


names, contents = st.text(max_size=150), st.tuples(st.text(max_size=5), st.binary(max_size=150), st.booleans())


@given(st.text(min_size=1), st.dictionaries(names, contents, max_size=5), st.sets(names, max_size=5), st.integers(1, 5))
def test_a_response_is_what_naming_each_field_to_the_library_gives(type_url, offered, gone, limit):
    publisher, sent = Publisher(limit), {}
    held = dict.fromkeys(gone, "of old")
    publisher.handle(DeltaDiscoveryRequest(type_url=type_url, initial_resource_versions=held))
    for name, (version, data, framed) in offered.items():
        head = head_of(name, version, type_url, len(data)) if framed else b""
        sent[name] = Versioned(version, type_url, data, head)
    made = DeltaDiscoveryResponse(type_url=type_url, nonce="1")
    for name, of in list(sent.items())[:limit]:
        resource = made.resources.add(name=name, version=of.version)
        resource.resource.type_url, resource.resource.value = type_url, of.data
    if len(sent) > limit:
        made.system_version_info = PARTIAL
    else:
        made.removed_resources.extend(sorted(gone - sent.keys()))
    said = read(publisher.offer(type_url, sent))
    said.removed_resources.sort()
    assert said == made


def test_a_response_says_which_of_its_resources_the_client_had_in_another_version():
    publisher = Publisher()
    publisher.handle(request(a="0", same="1", refused=""))
    first = publisher.offer(T, world(a="1", same="1", refused="1", new="1"))
    assert first.replaced == ["a"]
    publisher.handle(request(nonce="1"))
    assert publisher.offer(T, world(a="1", same="1", refused="1", new="2")).replaced == ["new"]


def test_a_name_twice_in_a_response_counts_once_and_is_not_removed():
    client = Subscriber(NODE, [T])
    twice = response("1", removed=["a"], a="1")
    twice.resources.extend(response("1", a="2").resources)
    batch = heard(client, twice)
    assert (batch.upserts, batch.removed) == ([("a", "2", b"data 2")], [])


worlds = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["1", "2", "3", "bad"]))
moves = st.lists(worlds | st.sampled_from(["disconnect", "deliver", "answer"]), max_size=25)


class Link:
    """A Subscriber and a Publisher with a wire between them that keeps order and may break at any point."""

    def __init__(self):
        self.subscriber, self.world = Subscriber(NODE, [T]), {}
        self.installed, self.taken = {}, {}
        self.connect()

    def connect(self):
        self.publisher, self.to_client = Publisher(max_resources=2), []
        self.to_server = self.subscriber.start()

    def push(self, response):
        self.to_client += [response] if response else []

    def publish(self, world):
        old, self.world = self.world, {name: item(version) for name, version in world.items()}
        changed = {name for name in old | self.world if old.get(name) != self.world.get(name)}
        self.push(self.publisher.offer(T, self.world, changed))

    def deliver(self):
        batch = self.subscriber.receive(read_response(self.to_client.pop(0).data))
        for name in batch.removed:
            self.installed.pop(name, None)
        refused = [(name, "bad") for name, version, _ in batch.upserts if version == "bad"]
        self.installed.update((name, version) for name, version, _ in batch.upserts if version != "bad")
        self.to_server.append(self.subscriber.settle(batch, refused))

    def answer(self):
        for outcome in self.publisher.handle(self.to_server.pop(0)):
            again = isinstance(outcome, Subscribed)
            self.push(self.publisher.offer(T, self.world) if again else self.publisher.next(T))

    def play(self, move):
        if isinstance(move, dict):
            self.publish(move)
        elif move == "disconnect":
            self.connect()
        elif move == "deliver" and self.to_client:
            self.deliver()
        elif move == "answer" and self.to_server:
            self.answer()

    def settle(self):
        for _ in range(100):
            if self.to_server:
                self.answer()
            elif self.to_client:
                self.deliver()


@settings(max_examples=80, deadline=None)
@given(moves)
def test_whatever_happens_the_client_ends_with_the_servers_world_minus_what_it_refused(story):
    link = Link()
    for move in story:
        link.play(move)
    link.settle()
    assert not link.to_client
    assert not link.to_server
    assert dict(link.subscriber.held(T)) == link.installed
    good = {name: item.version for name, item in link.world.items() if item.version != "bad"}
    assert {name: version for name, version in link.installed.items() if name in good} == good
    assert link.installed.keys() <= link.world.keys()
