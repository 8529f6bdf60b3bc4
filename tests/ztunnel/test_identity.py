import asyncio

import pytest

from mesh.errors import PeerError
from tests.ztunnel.authority import Authority
from tests.ztunnel.conftest import until
from ztunnel.identity import Certificates
from ztunnel.metrics import Metrics

WEB, DB = "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/db"


@pytest.fixture
def make(dataplane):
    return lambda authority: Certificates(dataplane, authority, Metrics(), chance=lambda: 0.0)


def running(certificates, story):
    async def run():
        work = asyncio.create_task(certificates.run())
        try:
            await story()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    asyncio.run(run())


def test_a_needed_certificate_is_asked_for_and_installed(make, core):
    authority = Authority()
    certificates = make(authority)

    async def story():
        certificates.needed(WEB, "now")
        certificates.needed(DB, "prefetch")
        await until(lambda: len(core.chains) == 2)
        await until(lambda: len(certificates.rotation.expiries()) == 2)

    running(certificates, story)
    assert sorted(authority.asked) == [DB, WEB]


def test_a_certificate_for_somebody_else_is_not_installed_and_the_waiting_are_told(make, core):
    authority = Authority()
    authority.names_instead = [DB]
    certificates = make(authority)

    async def story():
        certificates.needed(WEB, "now")
        await until(lambda: core.failures)

    running(certificates, story)
    assert core.chains == {}
    assert core.failures == [(WEB, f"the certificate is for {DB}, expected {WEB}")]


def test_a_refusing_ca_fails_the_waiting_and_is_asked_again(make, core):
    authority = Authority()
    authority.says = PeerError("the CA says no")
    certificates = make(authority)

    async def story():
        certificates.needed(WEB, "now")
        await until(lambda: core.failures)
        assert certificates.rotation.wake_at() is not None

    running(certificates, story)
    assert core.failures == [(WEB, "the CA says no")]
    assert certificates.rotation.troubles() == {WEB: "the CA says no"}


def test_what_nobody_uses_any_more_is_forgotten_even_if_the_answer_comes_late(make, core):
    authority = Authority()
    certificates = make(authority)

    async def story():
        certificates.needed(WEB, "prefetch")
        certificates.rotation.due(float("inf"))
        certificates.unused(WEB)
        await certificates.obtain(WEB)

    running(certificates, story)
    assert core.chains == {}


def test_what_a_restart_left_is_in_use_and_renewed_when_its_time_comes(make, core):
    certificates = make(Authority())
    now = certificates._clock()
    certificates.restored(WEB, f"{now - 10} {now + 1000}")
    assert certificates.rotation.due(now + 1) == []
    assert certificates.rotation.due(now + 500) == [WEB]
