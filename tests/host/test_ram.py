"""Free RAM is what a container leaves, not what its host has."""

from __future__ import annotations

import comfy.model_management
import pytest

from ultragen_core.host.ram import free_ram

MB = 10**6
HOST = 64_000 * MB


@pytest.fixture(autouse=True)
def host(monkeypatch):
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: HOST)


def group(root, path: str, **contents) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def process_in(root, text: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(text)


def test_without_groups_it_is_comfyuis_number(tmp_path):
    assert free_ram(tmp_path) == HOST
    process_in(tmp_path, "0::/\n")
    assert free_ram(tmp_path) == HOST
    assert 0 <= free_ram() <= HOST


def test_version_2_without_a_limit(tmp_path):
    process_in(tmp_path, "0::/\n")
    group(tmp_path, "", memory__max="max", memory__high="max", memory__current=5 * MB)
    assert free_ram(tmp_path) == HOST


def test_version_2(tmp_path):
    process_in(tmp_path, "0::/\n")
    group(tmp_path, "", memory__max=1000 * MB, memory__current=600 * MB)
    assert free_ram(tmp_path) == 400 * MB
    group(tmp_path, "", memory__stat=f"anon {400 * MB}\ninactive_file {150 * MB}\nactive_file 7")
    assert free_ram(tmp_path) == 550 * MB
    group(tmp_path, "", memory__high=800 * MB)
    assert free_ram(tmp_path) == 350 * MB


def test_the_nearest_limit_of_nested_groups_holds(tmp_path):
    process_in(tmp_path, "0::/user/session/run\n")
    group(tmp_path, "user/session/run", memory__max=900 * MB, memory__current=100 * MB)
    group(tmp_path, "user/session", memory__max=500 * MB, memory__current=200 * MB)
    group(tmp_path, "user", memory__max="max", memory__current=300 * MB)
    assert free_ram(tmp_path) == 300 * MB


@pytest.mark.parametrize("path", ["/", "/docker/abc"])
def test_version_1(tmp_path, path):
    """A container sees its own group as the root, by whatever path the host knows it."""
    process_in(tmp_path, f"5:cpu,cpuacct:{path}\n4:memory:{path}\n0::/\n")
    limits = {"memory__limit_in_bytes": 1000 * MB, "memory__usage_in_bytes": 900 * MB}
    group(tmp_path, "memory", **limits, memory__stat=f"inactive_file 1\ntotal_inactive_file {50 * MB}")
    assert free_ram(tmp_path) == 150 * MB


def test_a_group_over_its_limit_leaves_nothing(tmp_path):
    process_in(tmp_path, "0::/\n")
    group(tmp_path, "", memory__max=1000 * MB, memory__current=1100 * MB)
    assert free_ram(tmp_path) == 0
