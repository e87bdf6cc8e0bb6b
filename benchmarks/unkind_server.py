"""An S3 server on loopback that throttles, stalls and fails on demand, for `chaos.py`."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Iterable
from typing import Any

from pyarrow import fs

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
INTERNAL = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"


class UnkindServer:
    """moto's S3 on loopback behind `mode`: "", throttle, stall or away. A context manager."""

    def __init__(self, seed: int):
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: object) -> None:
                """Not to the terminal."""

        self.app, self.mode, self.rng = DomainDispatcherApplication(create_backend_app), "", random.Random(seed)
        self.requests = self.refused = self.jobs = 0
        self.lock = threading.Lock()
        self.server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Quiet)
        self.address = f"127.0.0.1:{self.server.server_port}"

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.requests += 1
        self.jobs += environ["REQUEST_METHOD"] == "PUT" and "/store/runs/" in environ["PATH_INFO"]
        while self.mode == "stall":
            time.sleep(0.1)
        if self.mode == "away" or (self.mode == "throttle" and self.rng.random() < 0.5):
            self.refused += 1
            status = "503 Slow Down" if self.mode == "throttle" else "500 Internal Server Error"
            start_response(status, [("Content-Type", "application/xml")])
            return [SLOW_DOWN if self.mode == "throttle" else INTERNAL]
        # as S3: a request whose client has left before its body was whole changes nothing, and writes of one object do not mix
        # (moto's do: after a stall the abandoned request and the repeated one arrive together)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        if len(body) < length:
            start_response("400 Bad Request", [("Content-Type", "application/xml")])
            return [b"<Error><Code>IncompleteBody</Code></Error>"]
        if length:
            environ["wsgi.input"] = io.BytesIO(body)
        with self.lock:
            return list(self.app(environ, start_response))

    def __enter__(self) -> UnkindServer:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mode = ""
        self.server.shutdown()

    def uri(self, bucket: str) -> str:
        """Of a store in a new bucket."""
        fs.S3FileSystem(endpoint_override=self.address, scheme="http", allow_bucket_creation=True).create_dir(bucket)
        return f"s3://{bucket}/store?endpoint_override={self.address}&scheme=http"
