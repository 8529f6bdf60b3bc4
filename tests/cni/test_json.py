"""Hostile JSON: both twins accept and refuse exactly the same, the C one under sanitizers."""

import json
import random

import pytest

from tests.cni.test_plugin import PREVIOUS, config
from tests.cni.twins import call

DEEP = 61  # the document, prevResult and "x" are the other three levels of 64

ACCEPTED = [
    '{"x":0}',
    '{"x":-0}',
    '{"x":-0.0e-0}',
    '{"x":1E+999}',
    '{"x":' + "9" * 5000 + "}",
    '{"x":"\\u0000\\ud800\\b\\f\\n\\r\\t\\/\\\\\\""}',
    '{"x":"\u007f\u0080\u07ff\u0800\uffff\U00010000\U0010ffff"}',
    '{"x":{"x":{"x":[[],[[]],{}]}}}',
    '{"":null,"\\u0000":true,"' + "k" * 100 + '":false}',
    '{\t"x"\r:\n[ ] }',
    '{"x":' + "[" * DEEP + "]" * DEEP + "}",
    '{"x":"' + "[" * 1000 + '"}',
    '{"x":1,"x":2}',
]
REFUSED = [
    b"",
    b" ",
    b"\x00",
    b"\xef\xbb\xbf{}",
    b"{}{}",
    b"{},",
    b"[]",
    b'"x"',
    b"5",
    b"{",
    b"}",
    b'{"',
    b'{"x',
    b'{"x"',
    b'{"x":',
    b'{"x":1',
    b'{"x":1,',
    b'{"x":1,}',
    b'{,"x":1}',
    b"{x:1}",
    b"{'x':1}",
    b'{"x" 1}',
    b'{"x"::1}',
    b'{"x":[1,]}',
    b'{"x":[,1]}',
    b'{"x":[1 2]}',
    b'{"x":[1}',
    b'{"x":{]}',
    b'{"x":01}',
    b'{"x":-}',
    b'{"x":+1}',
    b'{"x":.5}',
    b'{"x":1.}',
    b'{"x":1e}',
    b'{"x":1e+}',
    b'{"x":0x1}',
    b'{"x":NaN}',
    b'{"x":Infinity}',
    b'{"x":-Infinity}',
    b'{"x":nul}',
    b'{"x":nulll}',
    b'{"x":True}',
    b'{"x":"\\x41"}',
    b'{"x":"\\u12"}',
    b'{"x":"\\u12g4"}',
    b'{"x":"\\',
    b'{"x":"\\u',
    b'{"x":"\\"}',
    b'{"x":"\n"}',
    b'{"x":"\x00"}',
    b'{"x":"\x1f"}',
    b'{"x":"\x80"}',
    b'{"x":"\xc0\x80"}',
    b'{"x":"\xc3"}',
    b'{"x":"\xc3\x28"}',
    b'{"x":"\xe0\x80\x80"}',
    b'{"x":"\xed\xa0\x80"}',
    b'{"x":"\xf0\x80\x80\x80"}',
    b'{"x":"\xf4\x90\x80\x80"}',
    b'{"x":"\xf8\x88\x80\x80\x80"}',
    b'{"x":"\xff"}',
    b'{"x":1} // comment',
    b'{"x":1 /* comment */}',
    b'{"x":\xa01}',
    b'{"x":' + b"[" * (DEEP + 3) + b"]" * (DEEP + 3) + b"}",
    b"[" * 1_000_000,
    b'{"x":' * 200_000,
]


@pytest.mark.parametrize("previous", ACCEPTED, ids=lambda text: text[:24])
def test_what_is_json_passes_through(plugin, previous):
    said = call(plugin, "ADD", config(previous=previous), CNI_ARGS=None)
    assert said.stdout.decode() == '{"cniVersion":"1.0.0",' + previous[1:] + "\n"


@pytest.mark.parametrize("stdin", REFUSED, ids=lambda text: repr(text[:24]))
def test_what_is_no_json_object_is_refused(plugin, stdin):
    error = call(plugin, "ADD", stdin).error
    assert (error["code"], error["msg"]) == (6, "the network configuration on stdin is not a JSON object")


def test_one_level_too_deep_is_refused(plugin):
    too_deep = '{"x":' + "[" * (DEEP + 2) + "]" * (DEEP + 2) + "}"
    assert call(plugin, "ADD", config(previous=too_deep), CNI_ARGS=None).code == 6


def mutate(text, dice):
    """One random edit: a byte changed, a slice cut, a slice doubled."""
    at, to = sorted(dice.sample(range(len(text) + 1), 2))
    kind = dice.randrange(3)
    if kind == 0:
        return text[:at] + bytes([dice.choice(b'{}[]",:\\0x\x00\xff \n')]) + text[at + 1 :]
    return text[:at] + text[to:] if kind == 1 else text[:to] + text[at:]


def is_accepted(text):
    """By a third opinion: Python's parser with its three leniencies taken away."""
    try:
        json.loads(text.decode("utf-8"), parse_constant=lambda word: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return False
    return True


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_never_breaks_the_scanner(sanitized, seed):
    """A well-formed document ends in whatever the configuration deserves, a damaged one in code 6; never in a crash."""
    dice = random.Random(seed)
    for _ in range(12):
        text = mutate(config(previous=PREVIOUS), dice)
        said = call(sanitized, "ADD", text, CNI_ARGS=None)
        if said.status == 0:
            assert is_accepted(text)
            json.loads(said.stdout)
        elif not is_accepted(text):
            assert said.error["code"] == 6
        else:
            assert said.error["code"] in (1, 6, 7)
