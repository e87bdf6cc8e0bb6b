"""Jobs on a real head, started by the rendered head.sh, through its dashboard."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_runs import RunningHead

from cluster import node as here
from cluster.launch.jobs import Cluster
from idgbr.errors import BadRequest, Disagreement, Missing

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_a_command_runs_with_its_words_intact_and_its_output_and_end_are_told(head: RunningHead, tmp_path: Path) -> None:
    """submit --wait, status and logs by a spec; the token is in no output."""
    write = f"json.dump([sys.argv[1:], os.environ['IDGBR_STORE']], open({str(tmp_path / 'out')!r}, 'w'))"
    program = f"import json, os, sys; {write}; print('said', 'so')"
    word = 'it\'s $(touch PWNED) "x"'
    done = head.cli("submit", str(head.spec_file), "--wait", "--", "python", "-c", program, word)
    assert done.returncode == 0, done.stderr
    assert "said so" in done.stdout
    assert json.loads((tmp_path / "out").read_text()) == [[word], head.spec.store]
    status = head.cli("status", str(head.spec_file), "--json")
    assert json.loads(status.stdout)["state"] == "SUCCEEDED"
    logs = head.cli("logs", str(head.spec_file))
    assert "said so" in logs.stdout
    token = head.token_file.read_text()
    assert all(token not in text for d in (done, status, logs) for text in (d.stdout, d.stderr))
    assert token not in (head.home / "head.log").read_text()
    assert not list(head.home.glob("**/PWNED"))


def test_a_failing_command_is_a_failure_here_too(head: RunningHead) -> None:
    done = head.cli("submit", head.address, "--token-file", str(head.token_file), "--wait", "--", "bash", "-c", "echo before; exit 7")
    assert done.returncode == 1
    assert "exit code 7" in done.stderr
    assert "before" in done.stdout


def test_a_working_folder_travels_and_the_same_id_never_runs_twice(head: RunningHead, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "once.py").write_text(f"open({str(tmp_path / 'runs')!r}, 'a').write('run ')\n")
    cluster = Cluster(head.address, head.token_file)
    words = ["python", "once.py"]
    for _ in range(2):
        assert cluster.submit(words, job_id="only-once", working_dir=tmp_path / "code") == "only-once"
        assert cluster.wait("only-once", 90).state == "SUCCEEDED"
    assert (tmp_path / "runs").read_text() == "run "
    with pytest.raises(BadRequest, match="in use for another command"):
        cluster.submit(["true"], job_id="only-once")
    with pytest.raises(BadRequest, match="no such working folder"):
        cluster.submit(words, job_id="x", working_dir=tmp_path / "absent")
    with pytest.raises(Missing, match=r"no job absent.*only-once"):
        cluster.job("absent")


def test_down_stops_what_runs_and_leaves_the_rest(head: RunningHead) -> None:
    cluster = Cluster(head.address, head.token_file)
    job = cluster.submit(["sleep", "600"], job_id="sleeper")
    done = head.cli("down", str(head.spec_file), "--job", job)
    assert done.returncode == 0, done.stderr
    assert "1 job(s) stopped" in done.stderr
    assert cluster.job(job).state == "STOPPED"


def test_another_users_cluster_refuses_us_and_we_refuse_one_that_asks_for_no_token(head: RunningHead, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="requires a token"):
        Cluster(head.address)
    with pytest.raises(Disagreement, match="another user's cluster"):
        Cluster(head.address, here.make_token(tmp_path / "token"))
    done = head.cli("submit", head.address, "--token-file", str(tmp_path / "token"), "--", "true")
    assert done.returncode == 4
    gcs = head.cli("doctor", head.gcs, "--token-file", str(tmp_path / "token"), "--store", str(tmp_path))
    assert gcs.returncode == 4, gcs.stderr
    assert "refuses our token" in gcs.stderr


def test_the_doctor_passes_a_sound_cluster_as_a_job_and_fails_what_is_missing(head: RunningHead) -> None:
    good = head.cli("doctor", str(head.spec_file))
    assert good.returncode == 0, good.stdout + good.stderr
    assert "all 13 checks passed" in good.stdout
    bad = head.cli(
        "doctor",
        head.gcs,
        "--token-file",
        str(head.token_file),
        "--store",
        head.spec.store,
        "--weights",
        "/absent.safetensors",
        "--nodes",
        "2",
        "--json",
    )
    assert bad.returncode == 3, bad.stderr
    failed = {c["name"]: c for c in json.loads(bad.stdout) if c["code"]}
    assert set(failed) == {"nodes", "weights"}
    assert "/absent.safetensors: No such file" in failed["weights"]["found"]


class FakeDashboard(http.server.BaseHTTPRequestHandler):
    """Answers as a dashboard would up to the moment of submitting, then hangs up (`lost`); `/api/version` by class attributes."""

    ray_version = "2.60.0"
    wants_token = True

    def do_GET(self) -> None:
        if self.wants_token and "Authorization" not in self.headers:
            self.send_response(401)
            self.end_headers()
            return
        body = json.dumps({"version": "4", "ray_version": self.ray_version, "ray_commit": "", "session_name": ""}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def dashboard() -> Iterator[tuple[str, type[FakeDashboard]]]:
    kind = type("Dashboard", (FakeDashboard,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", kind
    server.shutdown()
    server.server_close()


def test_a_cluster_lost_in_mid_submit_is_one_error_with_the_id_to_ask_for(
    dashboard: tuple[str, type[FakeDashboard]], tmp_path: Path
) -> None:
    address, _ = dashboard
    cluster = Cluster(address, here.make_token(tmp_path / "token"))
    with pytest.raises(Missing, match=r"was lost while the job j-1 was being submitted.*may or may not have started.*--job j-1"):
        cluster.submit(["true"], job_id="j-1")


def test_another_version_of_ray_and_a_cluster_without_tokens_are_refused(
    dashboard: tuple[str, type[FakeDashboard]], tmp_path: Path
) -> None:
    address, kind = dashboard
    kind.ray_version = "2.9.0"
    with pytest.raises(Disagreement, match=r"Ray 2\.9\.0 at .*pip install ray==2\.9\.0"):
        Cluster(address, here.make_token(tmp_path / "token"))
    kind.ray_version, kind.wants_token = "2.60.0", False
    with pytest.raises(Disagreement, match="asks for no token"):
        Cluster(address, here.make_token(tmp_path / "token"))
    assert Cluster(address, open_cluster=True).address == address
