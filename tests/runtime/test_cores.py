"""What a process may use of a machine, by trees of /proc and /sys as kernels, containers and hypervisors show them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from commands import run_main
from m3_runtime import cli
from m3_runtime.cli import info
from m3_runtime.cores import CpuQuota, cpus_of_workers, usable_cores
from m3_runtime.cpu import described

CPU, CGROUP, NODE = "sys/devices/system/cpu", "sys/fs/cgroup", "sys/devices/system/node"
Files = Mapping[str, str]


@pytest.fixture
def found(tmp_path):
    """What is found on a machine that has these files, where these CPUs are allowed."""

    def find(files: Files, allowed=range(1)):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return usable_cores(tmp_path, frozenset(allowed))

    return find


def sys_cpus(siblings: Mapping[int, str]) -> dict[str, str]:
    return {f"{CPU}/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in siblings.items()}


def sys_ids(ids: Mapping[int, tuple[int, int | None, int]]) -> dict[str, str]:
    """Package, die and core of each CPU."""
    names = ("physical_package_id", "die_id", "core_id")
    return {
        f"{CPU}/cpu{cpu}/topology/{name}": str(number)
        for cpu, numbers in ids.items()
        for name, number in zip(names, numbers, strict=True)
        if number is not None
    }


def cpuinfo(ids: Mapping[int, tuple[int, int]]) -> dict[str, str]:
    blocks = (f"processor\t: {n}\nphysical id\t: {p}\ncore id\t\t: {c}\n" for n, (p, c) in ids.items())
    return {"proc/cpuinfo": "\n".join(blocks)}


EIGHT_IN_PAIRS = sys_cpus({cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)})
DIES = sys_ids({cpu: (0, cpu // 2, cpu % 2) for cpu in range(4)})


@pytest.mark.parametrize(
    ("files", "allowed", "cores", "topology"),
    [
        pytest.param(EIGHT_IN_PAIRS, range(8), 4, CPU, id="two hardware threads a core"),
        pytest.param(EIGHT_IN_PAIRS, (0, 1, 4), 2, CPU, id="affinity leaves a core and a half"),
        pytest.param(EIGHT_IN_PAIRS, (1, 5), 1, CPU, id="affinity leaves one core"),
        pytest.param(sys_cpus({0: "0-1", 1: "0-1", 2: "2", 3: "3"}), range(4), 3, CPU, id="large and small cores"),
        pytest.param(sys_cpus({0: "0"}), range(1), 1, CPU, id="one CPU"),
        pytest.param(DIES, range(4), 4, CPU, id="cores are numbered within their die"),
        pytest.param(sys_ids({n: (n // 4, None, n % 2) for n in range(8)}), range(8), 4, CPU, id="no dies"),
        pytest.param(
            sys_cpus({0: "0", 1: "1"}) | sys_ids(dict.fromkeys(range(2), (0, 0, 0))),
            range(2), 2, CPU, id="lists before ids",
        ),
        pytest.param(cpuinfo({n: (0, n % 2) for n in range(4)}), range(4), 2, "proc/cpuinfo", id="no /sys"),
        pytest.param(cpuinfo({n: (0, n) for n in range(4)}), range(4), 4, "proc/cpuinfo", id="gVisor"),
        pytest.param({}, range(6), 6, None, id="nothing"),
        pytest.param({"proc/cpuinfo": "processor\t: 0"}, range(1), 1, None, id="Arm's cpuinfo"),
        pytest.param(sys_cpus({0: "?", 1: ""}), range(2), 2, None, id="no lists that can be read"),
        pytest.param(cpuinfo({0: (0, 0), 1: (0, 0)}), (4, 9), 2, None, id="LXC has numbered the CPUs anew"),
        pytest.param(cpuinfo({0: (0, 0), 1: (0, 0), 2: (0, 1)}), (1, 4), 2, None, id="LXC, one number fits"),
        pytest.param(cpuinfo(dict.fromkeys(range(4), (0, 0))), range(4), 4, None, id="all of one core id"),
        pytest.param(sys_cpus(dict.fromkeys(range(4), "0-3")), range(4), 4, None, id="all siblings"),
        pytest.param(sys_ids(dict.fromkeys(range(2), (0, 0, 0))), range(2), 2, None, id="two of one core id"),
        pytest.param(sys_ids({n: (n // 4, 0, 0) for n in range(8)}), range(8), 8, None, id="one core id a package"),
        pytest.param(
            sys_cpus(dict.fromkeys(range(4), "0-3")) | cpuinfo({n: (0, n) for n in range(4)}),
            range(4), 4, "proc/cpuinfo", id="/proc knows better",
        ),
    ],
)  # fmt: skip
def test_cores(found, files, allowed, cores, topology):
    usable = found(files, allowed)
    assert (usable.cores, usable.topology) == (cores, topology and f"/{topology}")
    assert usable.threads == cores
    assert usable.allowed_cpus == tuple(allowed)


V1 = {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("own_groups", "files", "quota", "threads"),
    [
        ("0::/", {}, None, 8),
        ("0::/", {"cpu.max": "max 100000"}, None, 8),
        ("0::/", {"cpu.max": "350000 100000"}, (3.5, ""), 3),
        ("0::/", {"cpu.max": "50000 100000"}, (0.5, ""), 1),
        ("0::/", {"cpu.max": "3200000 100000"}, (32, ""), 8),
        ("0::/", {"cpu.max": "100000 0"}, None, 8),
        ("0::/m3.slice/m3.service", {"m3.slice/m3.service/cpu.max": "200000 100000"}, (2, "/m3.slice/m3.service"), 2),
        ("0::/pod/one", {"pod/cpu.max": "300000 100000", "pod/one/cpu.max": "max 100000"}, (3, "/pod"), 3),
        ("0::/a/b", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "400000 100000"}, (1, "/a"), 1),
        ("0::/a", {"b/cpu.max": "100000 100000"}, None, 8),
        ("0::/../elsewhere", {"elsewhere/cpu.max": "100000 100000"}, None, 8),
        ("0::/a..b", {"a..b/cpu.max": "100000 100000"}, (1, "/a..b"), 1),
        ("2:cpu,cpuacct:/a\n0::/", {f"cpu/a/{name}": text for name, text in V1.items()}, (2.5, "/cpu/a"), 2),
        ("2:cpu,cpuacct:/a", {f"cpu,cpuacct/a/{name}": text for name, text in V1.items()}, (2.5, "/cpu,cpuacct/a"), 2),
        ("2:cpuset:/a", {f"cpuset/a/{name}": text for name, text in V1.items()}, None, 8),
        ("3:cpu:/docker/1f", {f"cpu/{name}": text for name, text in V1.items()}, (2.5, "/cpu"), 2),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, 8),
        ("no such line", {}, None, 8),
    ],
)
def test_a_quota_is_not_overrun(found, own_groups, files, quota, threads):
    usable = found(
        {"proc/self/cgroup": own_groups, **{f"{CGROUP}/{name}": text for name, text in files.items()}}, range(8)
    )
    assert usable.quota == (quota and CpuQuota(quota[0], f"/{CGROUP}{quota[1]}"))
    assert usable.threads == threads


def nodes(*cpus: str) -> dict[str, str]:
    return {f"{NODE}/node{number}/cpulist": text for number, text in enumerate(cpus)}


@pytest.mark.parametrize(
    ("files", "workers", "threads", "bound"),
    [
        pytest.param(nodes("0-3", "4-7"), 2, 4, ((0, 1, 2, 3), (4, 5, 6, 7)), id="a node each"),
        pytest.param(nodes("0,2,4,6", "1,3,5,7"), 2, 4, ((0, 2, 4, 6), (1, 3, 5, 7)), id="CPUs in turn"),
        pytest.param(nodes("0-3", "4-7"), 4, 2, ((0, 1, 2, 3), (4, 5, 6, 7)) * 2, id="two in a node"),
        pytest.param(nodes("0-1", "2-3", "4-5", "6-7"), 2, 4, ((0, 1, 2, 3), (4, 5, 6, 7)), id="two nodes each"),
        pytest.param(nodes("0-3", "4-7", ""), 2, 4, ((0, 1, 2, 3), (4, 5, 6, 7)), id="a node of memory alone"),
        pytest.param(nodes("0-3,8-11", "4-7,12-15"), 2, 4, ((0, 1, 2, 3), (4, 5, 6, 7)), id="CPUs that are not ours"),
        pytest.param(nodes("0-7"), 2, 4, ((), ()), id="one node"),
        pytest.param({}, 2, 4, ((), ()), id="no nodes"),
        pytest.param(nodes("0-3", "4-7"), 1, 8, ((),), id="one worker"),
        pytest.param(nodes("0-3", "4-7"), 3, 2, ((), (), ()), id="three workers, two nodes"),
        pytest.param(nodes("0-3", "4-7"), 2, 8, ((), ()), id="more threads than a node has"),
        pytest.param(nodes("0-5", "6-7"), 2, 2, ((), ()), id="nodes of two sizes"),
        pytest.param(nodes("0-3"), 2, 2, ((), ()), id="CPUs of no node"),
    ],
)
def test_workers_get_nodes_of_their_own(found, files, workers, threads, bound):
    assert cpus_of_workers(workers, threads, found(files, range(8))) == bound


def test_info_says_why_so_many_threads(found, monkeypatch, tiny_bundle):
    group = {"proc/self/cgroup": "0::/m3", f"{CGROUP}/m3/cpu.max": "350000 100000", f"{CPU}/online": "0-15"}
    usable = found({**EIGHT_IN_PAIRS, **group, **nodes("0-3", "4-7")}, range(8))
    monkeypatch.setattr(info, "usable_cores", lambda: usable)
    words = run_main(cli.main, "info", tiny_bundle).stdout.partition("this machine: ")[2]
    for line in (
        ", 3 threads\n",
        "\n  CPUs: 8 of 16; affinity or a cpuset keeps the others\n",
        "\n  cores: 4, whose hardware threads count once, by /sys/devices/system/cpu\n",
        "\n  CPU quota: 3.5 CPUs, of /sys/fs/cgroup/m3\n",
        "\n  NUMA: nodes of 4, 4 CPUs; --workers 2 gives each worker one of its own\n",
    ):
        assert line in words
    machine = json.loads(run_main(cli.main, "info", tiny_bundle, "--json").stdout)["machine"]
    assert machine["threads"] == 3
    assert machine["usable_cores"] == {
        "machine_cpus": 16,
        "allowed_cpus": [*range(8)],
        "cores": 4,
        "topology": "/sys/devices/system/cpu",
        "quota": {"cpus": 3.5, "group": "/sys/fs/cgroup/m3"},
        "numa_nodes": [[0, 1, 2, 3], [4, 5, 6, 7]],
    }
    plain = replace(usable, machine_cpus=8, cores=8, topology=None, quota=None, numa_nodes=())
    monkeypatch.setattr(info, "usable_cores", lambda: plain)
    words = run_main(cli.main, "info", tiny_bundle).stdout
    for line in (
        "\n  CPUs: 8 of 8\n",
        "\n  cores: 8; nothing here says which CPUs share a core\n",
        "\n  CPU quota: none\n",
    ):
        assert line in words


def test_this_machine():
    usable = usable_cores()
    assert 1 <= usable.threads <= len(usable.allowed_cpus) <= usable.machine_cpus
    if Path("/sys/devices/system/node/node0").is_dir():
        assert sum(map(len, usable.numa_nodes)) == len(usable.allowed_cpus)


def test_flags_are_those_of_the_architecture():
    on_x86 = "model name\t: A Core\nflags\t\t: fpu avx2 avx512_vnni\n"
    assert described(on_x86, "x86_64").flags == {"avx2", "avx512_vnni"}
    assert described(on_x86, "aarch64").flags == frozenset()  # an emulator shows the file of the machine below
    assert described("Features\t: fp asimd asimddp i8mm\n", "aarch64").multipliers == "i8mm"
