"""Requests that a trial makes to an object store, counted by the server."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from tiny_sweeps import tiny

from idgbr.config import Runtime
from idgbr.store import Store
from sweeps import tables
from sweeps.run import plan as planning
from sweeps.run.units import units_of
from sweeps.run.worker import WorkerContext, work


class CountingServer:
    """moto's S3 on loopback; `counts`: requests by method."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: object) -> None:
                """Not to the terminal."""

        self.app, self.counts, self.paths = DomainDispatcherApplication(create_backend_app), Counter[str](), list[str]()
        self.server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Quiet)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.counts[environ["REQUEST_METHOD"]] += 1
        self.paths.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ['QUERY_STRING'][:60]}")
        return self.app(environ, start_response)  # type: ignore[no-any-return]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingServer]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = CountingServer()
    yield server
    server.server.shutdown()


def of_one_trial(made: Path, server: CountingServer, cache: Path, more: str) -> Counter[str]:
    """Requests of sampling, counting and recording one trial on a node whose cache holds the refiner already."""
    bucket = f"bucket-{os.urandom(6).hex()}"
    s3 = fs.S3FileSystem(endpoint_override=server.address, scheme="http", allow_bucket_creation=True)
    s3.create_dir(bucket)
    fs.copy_files(str(made), f"{bucket}/store", source_filesystem=fs.LocalFileSystem(), destination_filesystem=s3)
    store = Store(f"s3://{bucket}/store?endpoint_override={server.address}&scheme=http{more}", cache=cache)
    study = tiny()
    trial = list(planning.expand(study))[-1]
    for job in trial.jobs[-2:]:
        store.delete(store.folder(job.stage, job.key))
    planning.drop_rows(store, study.name, trial.id)
    for job in trial.jobs[:-2]:
        store.path(job.stage, job.key)
    made_plan = planning.make(study, store)
    (unit,) = units_of(made_plan, 1)
    server.counts.clear()
    server.paths.clear()
    outcomes = list(work(unit, WorkerContext(store, Runtime(device="cpu", threads=1))))
    assert [o.status for o in outcomes] == ["done", "done"]
    counts = server.counts.copy()
    assert tables.statuses(store, study.name)[trial.id] == "done"
    return counts


def test_a_trial_makes_few_requests(made: Path, server: CountingServer, tmp_path: Path) -> None:
    before = of_one_trial(made, server, tmp_path / "before", "&allow_delayed_open=false")
    after = of_one_trial(made, server, tmp_path / "after", "")
    assert after.total() <= 24, "\n".join(server.paths)
    assert after["POST"] == 0  # no multipart upload of what is small
    assert before.total() - after.total() >= 20
