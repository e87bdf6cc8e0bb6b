"""What the doctor's probe finds on a node, without Ray: its methods in plain processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

from launch_runs import environment

from cluster.doctor.probe import Probe

PAIR = """
import json, sys
from cluster.doctor.probe import Probe
rank, port, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
print(json.dumps(Probe().all_reduce(rank, "127.0.0.1", port, seconds, 60.0)))
"""


def pair(home: Path, seconds: float, ranks: tuple[int, ...] = (0, 1)) -> list[dict[str, float | str]]:
    words = [[sys.executable, "-c", PAIR, str(rank), str(Probe().free_port()), str(seconds)] for rank in ranks]
    for other in words[1:]:
        other[4] = words[0][4]
    variables = environment(home, GLOO_SOCKET_IFNAME="lo")
    running = [subprocess.Popen(w, stdout=subprocess.PIPE, text=True, env=variables) for w in words]
    return [json.loads(process.communicate(timeout=200)[0].splitlines()[-1]) for process in running]


def test_two_processes_reduce_for_the_time_asked_and_agree_on_the_last_round(tmp_path: Path) -> None:
    first, second = pair(tmp_path, 0.3)
    assert "error" not in first, first
    assert first["rounds"] == second["rounds"]
    assert float(first["gb_per_s"]) > 0


def test_a_port_that_nobody_answers_is_a_finding_and_no_exception() -> None:
    with socket.socket() as quiet:
        quiet.bind(("127.0.0.1", 0))  # bound, but does not listen
        port = quiet.getsockname()[1]
        failed = Probe().connect([("127.0.0.1", port)], 2.0)
    assert list(failed) == [f"127.0.0.1:{port}"]
    answer = Probe().all_reduce(1, "127.0.0.1", port, 0.1, 0.5)
    assert "error" in answer


def test_store_probes_are_read_back_by_name_and_removed(tmp_path: Path) -> None:
    probe, store = Probe(), str(tmp_path / "store")
    assert probe.write(store, "_doctor-x-0", "text") == ""
    assert probe.read(store, ["_doctor-x-0", "_doctor-x-1"]) == {"_doctor-x-0": "text"}
    probe.remove(store, ["_doctor-x-0", "_doctor-x-1"])
    assert list((tmp_path / "store").iterdir()) == []
    (tmp_path / "file").touch()
    assert "Error" in probe.write(str(tmp_path / "file" / "store"), "x", "y")


def test_facts_hold_versions_files_and_space_also_of_paths_that_are_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"12345")
    facts = Probe().facts("", [str(tmp_path / "w.safetensors"), str(tmp_path / "absent")], [str(tmp_path / "not" / "yet")])
    assert facts["python"] == sys.version.split()[0]
    assert facts["versions"]["idgbr"] != "missing"
    assert facts["weights"][str(tmp_path / "w.safetensors")].startswith("5 bytes, ")
    assert facts["weights"][str(tmp_path / "absent")] == "error: No such file or directory"
    space = facts["space"][str(tmp_path / "not" / "yet")]
    assert 0 <= space["free_gb"] <= space["total_gb"]
    assert Probe().facts("", [], [])["code"] == facts["code"]
