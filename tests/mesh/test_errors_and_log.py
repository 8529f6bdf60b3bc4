import json
import logging

import pytest
import structlog

from mesh import log
from mesh.errors import OperatorError


@pytest.fixture
def as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_an_operators_mistake_prints_as_one_line_that_leads_with_its_place():
    assert str(OperatorError("no such\n  file", where="XDS_ROOT_CA")) == "XDS_ROOT_CA: no such file"
    assert str(OperatorError("no root")) == "no root"


def test_a_refused_start_is_a_sentence_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        log.refuse("ztunnel", OperatorError("is required and not set", where="NODE_NAME"))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "ztunnel: NODE_NAME: is required and not set\n"


def test_json_lines_carry_the_phrase_and_the_fields(capsys, as_before):
    log.configure("json", "info")
    log.get("zds").info(log.POD_ENROLLED, uid="web-1")
    log.get("zds").debug("hidden")
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == log.POD_ENROLLED
    assert (line["component"], line["uid"], line["level"]) == ("zds", "web-1", "info")


def test_a_component_may_have_a_level_of_its_own(capsys, as_before):
    log.configure("json", "warn", {"zds": "debug", "xds": "error"})
    log.get("zds").debug("shown")
    log.get("xds").warning("hidden")
    log.get("pods").info("hidden")
    log.get("pods").warning("shown")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["component"], line["event"]) for line in lines] == [("zds", "shown"), ("pods", "shown")]
    assert {"zds", "xds", "pods"} <= log.components()


def test_libraries_log_in_the_same_shape(capsys, as_before):
    log.configure("json", "info")
    logging.getLogger("grpc").warning("odd")
    assert json.loads(capsys.readouterr().err)["event"] == "odd"
