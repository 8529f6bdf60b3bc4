"""The doors' HTTP as bytes: `ask(b"...")` is everything that comes back until the server closes."""

import asyncio
import gzip
import socket

import pytest

from ztunnel.http1 import Answer, Server, text

LONG = b"x" * 100_000


async def _hello(query):
    return text(f"hello {query.get('to', 'nobody')}")


async def _long(_):
    return Answer(LONG, gzip=True)


async def _fails(_):
    raise ValueError("secret")


ROUTES = {"/hello": ("GET", _hello), "/long": ("GET", _long), "/do": ("POST", _hello), "/fails": ("GET", _fails)}


async def _open(routes):
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(routes)
    await server.start([listener])
    return server, *(await asyncio.open_connection(*listener.getsockname()))


@pytest.fixture
def ask():
    def run(said):
        async def main():
            server, reader, writer = await _open(ROUTES)
            writer.write(said)
            writer.write_eof()
            try:
                answered = await reader.read()
            except ConnectionError:  # the server closed before it read everything
                answered = b""
            writer.close()
            await server.close()
            return answered

        return asyncio.run(main())

    return run


def lines(answer):
    return answer.split(b"\r\n")


def test_one_connection_carries_many_questions(ask):
    both = ask(b"GET /hello?to=a HTTP/1.1\r\nHost: x\r\n\r\nGET /hello?to=b&to=c HTTP/1.1\r\nHost: x\r\n\r\n")
    assert both.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert b"hello a" in both
    assert both.endswith(b"hello b")


def test_a_connection_ends_when_its_client_says_so(ask):
    asked = b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert ask(asked * 2).count(b"HTTP/1.1") == 1
    assert ask(b"GET /hello HTTP/1.0\r\n\r\n" * 2).count(b"HTTP/1.1") == 1


def test_head_is_get_without_the_body(ask):
    answer = ask(b"HEAD /long HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"Content-Length: 100000" in lines(answer)
    assert answer.endswith(b"\r\n\r\n")
    assert ask(b"HEAD /do HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 405 ")


def test_who_takes_gzip_gets_it(ask):
    head, _, body = ask(b"GET /long HTTP/1.1\r\nHost: x\r\nAccept-Encoding: br, gzip\r\n\r\n").partition(b"\r\n\r\n")
    assert b"Content-Encoding: gzip" in lines(head)
    assert gzip.decompress(body) == LONG
    assert ask(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n").endswith(LONG)


def test_a_body_is_read_and_left_aside(ask):
    asked = b"POST /do HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    assert ask(asked + b"abc").endswith(b"hello nobody")
    assert b"HTTP/1.1 200 OK" in lines(ask(asked + b"abc"))


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"words\r\n\r\n", 400),
        (b"GET /hello HTTP/1.1\r\n\r\n", 400),
        (b"GET /hello HTTP/1.1\r\nHost: x\r\na: " + b"b" * 100_000, 431),
        (b"GET /else HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /hello HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /fails HTTP/1.1\r\nHost: x\r\n\r\n", 500),
    ],
)
def test_what_cannot_be_answered_is_told_by_its_status(ask, said, status):
    answer = ask(said)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"secret" not in answer


def test_a_body_without_end_is_not_read_to_its_end(ask):
    endless = b"POST /do HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + bytes(8_000_000)
    assert ask(endless)[:13] in (b"", b"HTTP/1.1 413 ")


def test_half_a_question_gets_no_answer(ask):
    assert b"hello" not in ask(b"GET /hel")
    assert b"hello" not in ask(b"GET /hello HTTP/1.1\r\nHost: x\r\n")


def test_at_the_end_the_answer_under_way_is_given_and_silent_connections_go():
    async def main():
        asked, go_on = asyncio.Event(), asyncio.Event()

        async def slow(_):
            asked.set()
            await go_on.wait()
            return text("late")

        server, reader, writer = await _open({"/slow": ("GET", slow)})
        address = writer.get_extra_info("peername")
        silent_reader, silent = await asyncio.open_connection(*address)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await asked.wait()
        closing = asyncio.create_task(server.close())
        assert await silent_reader.read() == b""
        go_on.set()
        answer = await reader.read()
        await closing
        for each in (writer, silent):
            each.close()
        return answer

    assert asyncio.run(main()).endswith(b"late")
