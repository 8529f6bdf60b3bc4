"""Where a pod's control group is, as the kubelet's two drivers name it."""

import pytest

from nodeagent import cgroups

UID = "8a1b2c3d-0000-4000-8000-123456789abc"


@pytest.mark.parametrize(
    "path",
    [
        f"kubepods/pod{UID}",
        f"kubepods/burstable/pod{UID}",
        f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID.replace('-', '_')}.slice",
        f"kubelet/kubepods/burstable/pod{UID}",
    ],
)
def test_a_pod_is_found_by_its_uid(tmp_path, path):
    (tmp_path / path / "container").mkdir(parents=True)
    assert cgroups.of_pod(tmp_path, UID) == tmp_path / path


def test_nobody_is_found_by_another_uid_or_by_none(tmp_path):
    (tmp_path / f"kubepods/pod{UID}").mkdir(parents=True)
    assert cgroups.of_pod(tmp_path, "8a1b2c3d") is None
    assert cgroups.of_pod(tmp_path, "") is None
    assert cgroups.of_pod(None, UID) is None


def test_cgroup_v2_is_where_the_mounts_say(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text("tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n")
    assert str(cgroups.mounted_at(mounts)) == "/sys/fs/cgroup/unified"
    mounts.write_text("tmpfs /tmp tmpfs rw 0 0\n")
    assert cgroups.mounted_at(mounts) is None
