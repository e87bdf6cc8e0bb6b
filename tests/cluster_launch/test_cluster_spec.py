"""Specs: what is impossible is refused with one clear error, before anything is asked of a machine."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import node as here
from cluster.__main__ import main
from cluster.launch.launchers import last_job, remember
from cluster.launch.spec import slug, with_program
from cluster.launch.spec_file import load, parse
from idgbr.errors import BadRequest, Disagreement, Missing

EXAMPLES = sorted((Path(__file__).parents[2] / "cluster" / "examples").glob("*.toml"))


def slurm_spec(**more: Any) -> dict[str, Any]:
    return {
        "name": "study",
        "kind": "slurm",
        "nodes": 2,
        "cpus_per_node": 8,
        "gpus_per_node": 4,
        "wall_time": "1:00:00",
        "workdir": "/w",
        "store": "/s",
        **more,
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_is_a_possible_cluster(path: Path) -> None:
    assert load(path).nodes >= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "slurmm"}, ["unknown kind", "slurmm", "did you mean 'slurm'"]),
        ({"stor": "/s"}, ["unknown key 'stor'", "did you mean 'store'"]),
        ({"store": ""}, ["no store"]),
        ({"store": "results"}, ["relative path", "results"]),
        ({"gpus_per_trial": 8}, ["more GPUs than a node has", "gpus_per_trial=8, gpus_per_node=4"]),
        ({"cpus_per_node": 2}, ["fewer CPUs than GPUs"]),
        ({"nodes": 0}, ["nodes is out of range"]),
        ({"nodes": "two"}, ["nodes has the wrong type", "'two'", "int"]),
        ({"nodes": True}, ["nodes has the wrong type"]),
        ({"name": "a\n#SBATCH --nodes=99"}, ["control character"]),
        ({"wall_time": "12h"}, ["wall_time cannot be read", "12h", "HH:MM:SS"]),
        ({"wall_time": ""}, ["needs wall_time"]),
        ({"slurm": {"partitoin": "gpu"}}, ["unknown key 'partitoin'", "did you mean 'partition'"]),
        ({"slurm": "gpu"}, ["slurm is a section"]),
        ({"slurm": {"scratch": "/a/rather/long/folder/on/every/node"}}, ["too long for Ray's sockets"]),
        ({"slurm": {"extra": ["--array=1-9"]}}, ["may not set --array"]),
        ({"slurm": {"extra": ["; rm -rf /"]}}, ["no option"]),
        ({"slurm": {"warn_s": -5}}, ["slurm.warn_s is out of range", "-5"]),
        ({"doctor": {"clock_skew_s": float("nan")}}, ["doctor.clock_skew_s is out of range"]),
        ({"env": {"A B": "1"}}, ["no name of a variable"]),
        ({"env": {"WANDB_TOKEN": "x"}}, ["looks like a secret"]),
        ({"ports": {"low": 80}}, ["ports.low is out of range"]),
        ({"kind": "kuberay"}, ["needs kuberay.image"]),
        ({"kind": "kuberay", "kuberay": {"image": "i"}}, ["needs kuberay.claim"]),
        ({"kind": "aws"}, ["unknown kind of cluster 'aws'", "slurm, kuberay, script"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_an_impossible_spec_is_one_clear_error(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadRequest) as error:
        parse(slurm_spec(**change))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("missing", ["name", "kind", "store"])
def test_a_spec_without_its_first_keys_says_which_and_gives_a_line_to_add(missing: str) -> None:
    data = slurm_spec()
    del data[missing]
    with pytest.raises(BadRequest, match=f"has no {missing}.*add {missing} ="):
        parse(data)


def test_a_file_that_is_absent_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"absent\.toml"):
        load(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("nodes = = 2")
    with pytest.raises(BadRequest, match=r"bad\.toml is not TOML"):
        load(tmp_path / "bad.toml")


def test_slugs_are_dns_labels_and_differ_where_names_differ() -> None:
    names = ["study", "Study", "my study", "my-study", "x" * 80, "x" * 81, "$(rm -rf /)", "äöü", "7up", "日本", "a" * 40]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    for made in slugs:
        assert len(made) <= 40, made
        assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", made), made
    assert slug("study") == "study"


def test_command_words_get_their_program_and_may_not_hold_line_breaks() -> None:
    assert with_program(["sweeps", "run", "x"], "python") == ["python", "-m", "sweeps", "run", "x"]
    for program in ("sweeps", "cluster", "idgbr"):
        words = with_program([program, "--help"], sys.executable)
        assert subprocess.run(words, capture_output=True, timeout=100).returncode == 0, words
    assert with_program(["./train.sh", "a b"], "python") == ["./train.sh", "a b"]
    with pytest.raises(BadRequest, match="no command"):
        with_program([], "python")
    with pytest.raises(BadRequest, match="control character"):
        with_program(["echo", "a\nEND_OF_COMMAND\nrm -rf /"], "python")


def test_jobs_get_blocks_of_ports_of_their_own_and_step_over_ports_in_use() -> None:
    import socket

    first = here.free_ports(100, 20000, 32000)
    assert here.free_ports(101, 20000, 32000) != first
    assert first % 16 == 20000 % 16
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 5))
        taken.listen()
        assert abs(here.free_ports(100, 20000, 32000) - first) > 16 * 100, "the blocks beside it belong to the jobs before and after"
        with pytest.raises(Missing, match="no block of 16 free ports"):
            here.free_ports(0, first, first + 16)


def test_a_token_file_is_made_once_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = here.make_token(tmp_path / "deep" / "token")
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(text) == 64
    assert here.make_token(path).read_text() == text
    assert sorted(p.name for p in path.parent.iterdir()) == ["token"]
    path.chmod(0o644)
    with pytest.raises(Disagreement, match="others can read"):
        here.make_token(path)


def test_a_token_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a file that belongs to another user")
    path = here.make_token(tmp_path / "token")
    os.chown(path, 12345, 12345)
    with pytest.raises(Disagreement, match="belongs to another user"):
        here.check_token(path)


def test_the_address_of_a_node_is_never_loopback_and_an_unknown_interface_lists_the_known() -> None:
    known = here.interfaces()
    if any(not ip.startswith("127.") for ip in known.values()):
        assert not here.address().startswith("127.")
        assert here.interface_of(here.address()) in known
    with pytest.raises(Missing, match=r"no interface 'ib7'.*127\.0\.0\.1"):
        here.address("ib7")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["sumbit", "x.toml"], 2, "did you mean 'submit'"),
        (["render", "absent.toml"], 3, "no cluster spec"),
        (["submit", "127.0.0.1:6379", "--", "true"], 2, "http://HOST:PORT"),
        (["submit", "http://127.0.0.1:1", "--", "true"], 3, "no Ray dashboard answers"),
        (["submit", "http://127.0.0.1:1"], 2, "no command to run"),
        (["status", "http://127.0.0.1:1", "--job", "x"], 3, "no Ray dashboard answers"),
        (["doctor", "here"], 3, "RAY_ADDRESS is not set"),
        (["train", "synthetic", "--workers", "0"], 2, "a shape of workers that cannot be"),
    ],
)
def test_the_command_line_says_what_is_wrong_and_exits_as_documented(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert main(words) == code
    assert said in capsys.readouterr().err


def test_options_that_do_not_exist_and_no_verb_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["status", "http://127.0.0.1:1", "--nosuch"]):
        assert main(words) == 2
        assert "--help" in capsys.readouterr().err


def test_train_stores_where_everything_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`store` in this folder, or IDGBR_STORE; here neither can be written, which is reported before Ray starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IDGBR_STORE", raising=False)
    (tmp_path / "store").touch()
    assert main(["train", "synthetic"]) == 3
    assert f"cannot write {tmp_path / 'store'}" in capsys.readouterr().err
    monkeypatch.setenv("IDGBR_STORE", str(tmp_path / "store" / "other"))
    assert main(["train", "synthetic"]) == 3
    assert f"cannot write {tmp_path / 'store' / 'other'}" in capsys.readouterr().err


def test_folders_that_cannot_be_written_are_one_error_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["render", str(EXAMPLES[0]), "-o", str(tmp_path / "file" / "x")]) == 3
    assert "cannot write" in capsys.readouterr().err
    monkeypatch.setenv("IDGBR_STATE", str(tmp_path / "file" / "x"))
    with pytest.raises(Missing, match="cannot note the job"):
        remember("study", "job-1", ["true"])
    monkeypatch.setenv("IDGBR_STATE", str(tmp_path))
    (tmp_path / "study.jobs.jsonl").write_text('{"job": \n')
    with pytest.raises(Missing, match=r"last line of .* cannot be read.*--job ID"):
        last_job("study")
    remember("study", "job-1", ["true"])
    assert last_job("study") == "job-1"
