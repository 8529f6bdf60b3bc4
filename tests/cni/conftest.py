import pytest

from tests.cni import twins


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory):
    return twins.build(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(params=["c", "python"])
def plugin(request):
    return request.getfixturevalue("sanitized") if request.param == "c" else twins.readable()


@pytest.fixture
def agent(tmp_path):
    with twins.agent_at(tmp_path / "cni.sock") as agent:
        yield agent
