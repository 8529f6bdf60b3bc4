import pytest

from mesh.errors import OperatorError
from mesh.settings import Env, parse_duration, parse_host_port

ENV = Env(
    {"PORT": "70000", "MARK": "0x539", "FLAG": "TRUE", "TTL": "1m30s", "EMPTY": "", "WORD": "blue", "AT": "[::]:80"}
)


def test_a_set_variable_wins_over_its_default_and_an_empty_one_does_not():
    assert ENV.text("WORD", "red") == "blue"
    assert ENV.text("EMPTY", "red") == "red"
    assert ENV.number("MARK") == 0x539
    assert ENV.number("ABSENT", 7) == 7
    assert ENV.flag("FLAG", False) is True
    assert ENV.flag("ABSENT", True) is True
    assert ENV.duration("TTL") == 90.0
    assert str(ENV.path("ABSENT", "/run/x")) == "/run/x"
    assert ENV.host_port("AT") == ("::", 80)


@pytest.mark.parametrize(
    ("read", "sentence"),
    [
        (lambda: ENV.text("ABSENT"), "ABSENT: is required and not set"),
        (lambda: ENV.number("WORD"), "WORD: 'blue' is not a whole number"),
        (lambda: ENV.number("PORT", high=65535), "PORT: 70000 is not between 0 and 65535"),
        (lambda: ENV.flag("WORD"), "WORD: 'blue' is neither true nor false"),
        (lambda: ENV.duration("WORD"), "WORD: 'blue' is not a duration such as 250ms, 5s or 24h"),
        (lambda: ENV.host_port("WORD"), "WORD: 'blue' is not ADDRESS:PORT"),
        (lambda: ENV.choice("WORD", "red", ("red", "green")), "WORD: 'blue' is none of red, green"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_variable(read, sentence):
    with pytest.raises(OperatorError) as caught:
        read()
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("24h", 86400.0), ("1.5s", 1.5), ("0s", 0.0)])
def test_durations_are_gos(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-1s", "1d", "5s!"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "1.2.3.4", "1.2.3.4:", "1.2.3.4:65536", "host:80", "1.2.3.4:８０"])
def test_what_is_no_address_to_listen_on_is_refused(text):
    with pytest.raises(ValueError, match=r"is not ADDRESS:PORT|IP address"):
        parse_host_port(text)
