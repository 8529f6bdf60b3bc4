"""A join token proves its node, until it expires or is taken back."""

import json

import pytest

from controlplane.attest import Tokens
from mesh.errors import OperatorError, PeerError


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tokens(tmp_path, clock):
    return Tokens(tmp_path / "state", clock)


def test_a_token_names_its_node(tokens):
    first, second = tokens.create("node1", 60), tokens.create("node2", 60)
    assert tokens.node_of(f"Bearer {first}") == "node1"
    assert tokens.node_of(f"Bearer {second}\n") == "node2"


def test_only_the_hash_is_kept_and_only_the_owner_may_read_it(tokens, tmp_path):
    token = tokens.create("node1", 60)
    path = tmp_path / "state" / "tokens" / "node1"
    assert token not in path.read_text()
    assert sorted(json.loads(path.read_text())) == ["expires", "node", "sha256"]
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert len(token) == 43  # 256 bits


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer {}x", "bearer {}", "Bearer " + "a" * 600]
)
def test_anything_else_is_refused_with_a_sentence(tokens, header):
    token = tokens.create("node1", 60)
    with pytest.raises(PeerError, match="join token"):
        tokens.node_of(header and header.format(token))


def test_an_expired_token_is_refused(tokens, clock):
    token = tokens.create("node1", 60)
    clock.now += 60
    with pytest.raises(PeerError, match="the join token of node node1 has expired"):
        tokens.node_of(f"Bearer {token}")


def test_a_new_token_replaces_the_old_one(tokens):
    old, new = tokens.create("node1", 60), tokens.create("node1", 60)
    assert tokens.node_of(f"Bearer {new}") == "node1"
    with pytest.raises(PeerError):
        tokens.node_of(f"Bearer {old}")


def test_a_revoked_token_is_refused_at_the_next_call(tokens):
    token = tokens.create("node1", 60)
    tokens.revoke("node1")
    with pytest.raises(PeerError):
        tokens.node_of(f"Bearer {token}")
    with pytest.raises(OperatorError, match="node node1 has no join token"):
        tokens.revoke("node1")


@pytest.mark.parametrize("node", ["", "..", "../x", "a/b", "Node", "a b", "-a", "a" * 254])
def test_a_node_cannot_be_a_path(tokens, node):
    with pytest.raises(OperatorError, match="is not a node's name"):
        tokens.create(node, 60)


def test_tokens_that_others_can_reach_are_not_used(tokens, tmp_path):
    tokens.create("node1", 60)
    (tmp_path / "state" / "tokens").chmod(0o755)
    with pytest.raises(OperatorError, match="has mode 0755; only 0700 is accepted"):
        list(tokens.all())
