import pytest

from ztunnel.levels import Levels

SCOPES = ("access", "core", "xds")


@pytest.mark.parametrize(
    ("spec", "after"),
    [
        ("debug", "debug"),
        ("access=debug", "access=debug,core=warn,info"),
        ("xds:trace,access:off", None),
        ("xds:trace,core::error", "core=error,xds=trace,info"),
        ("access=debug,error", "access=debug,error"),
        ("other=debug", None),
        ("loud", None),
        ("", None),
    ],
)
def test_what_a_person_writes_becomes_levels_or_a_sentence(spec, after):
    before = Levels("info", {"core": "warn"})
    if after is None:
        with pytest.raises(ValueError, match=r"level must be one of|logs nothing; there are access, core, xds"):
            before.changed(spec, SCOPES)
    else:
        changed = before.changed(spec, SCOPES)
        assert str(changed) == after
        assert changed.of("pods") == changed.level
