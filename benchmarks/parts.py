"""What many parts of a table cost a reader: 10,000 trials of one row each, against the same rows in one file. The last
line is one JSON object.

    python benchmarks/parts.py [--parts 10000] [--remote 1000]

CPU seconds on a local disk by the readers of the trials table (`sweeps.tables.scan`, DuckDB, what `sweeps table` reads first,
the states of all trials), of parts and of one file; and for a store on S3 (moto on loopback) the requests of `scan` for
`--remote` parts, counted by the server.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), *(str(Path(__file__).parents[1] / "tests" / name) for name in ("analysis", "sweeps"))]


def write(root: Path, parts: int) -> None:
    """Parts of one row, all from one template: only the id differs."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from make_tables import row_of

    from sweeps import tables
    from sweeps.study import Axis, Study, expand

    trial = expand(Study("many", "synthetic", axes=(Axis("sampler.steps", (1,)),), yardsticks=()))[0]
    values = {name: row_of(trial).get(name) for name in tables.TRIALS_SCHEMA.names}
    row = pa.Table.from_pylist([values], schema=tables.TRIALS_SCHEMA)
    folder = root / "tables" / "trials" / "study=many"
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    place = b"0123456789abcdef0123"  # of equal length, so that its bytes may be replaced in the file
    one = row.set_column(0, "trial", pa.array([place.decode()]))
    one = one.set_column(one.schema.get_field_index("key_counts"), "key_counts", pa.array([place.decode()]))
    pq.write_table(one, buffer, compression="none", use_dictionary=False)
    for i in range(parts):
        (folder / f"{i:020x}.parquet").write_bytes(buffer.getvalue().replace(place, f"{i:020x}".encode()))


def seconds(work: Callable[[], Any]) -> float:
    """Of all threads of this process: a busy machine changes nothing."""
    began = time.process_time()
    work()
    return round(time.process_time() - began, 2)


def local(parts: int) -> dict[str, float]:
    """Seconds of each reader."""
    import duckdb
    import pyarrow.parquet as pq

    from idgbr.store import Store
    from sweeps import tables
    from sweeps.analysis.trials import load_trials

    with tempfile.TemporaryDirectory() as folder:
        many, one = Path(folder) / "many", Path(folder) / "one"
        found = {"write_parts": seconds(lambda: write(many, parts))}
        rows = tables.scan(Store(many), "trials", "many")
        assert rows.num_rows == parts
        target = one / "tables" / "trials" / "study=many"
        target.mkdir(parents=True)
        pq.write_table(rows.drop_columns(["study"]), target / "all.parquet", compression="zstd")
        for name, root in (("parts", many), ("one_file", one)):
            query = f"select count(*), max(key_counts), sum(seed) from read_parquet('{root}/tables/trials/study=many/*.parquet')"
            found[f"scan_{name}"] = seconds(lambda root=root: tables.scan(Store(root), "trials", "many"))  # type: ignore[misc]
            found[f"duckdb_{name}"] = seconds(lambda query=query: duckdb.sql(query).fetchall())  # type: ignore[misc]
        found["table_parts"] = seconds(lambda: load_trials([str(many)], ["many"]))
        found["statuses_parts"] = seconds(lambda: tables.statuses(Store(many), "many"))
        found["mb_parts"] = round(sum(p.stat().st_size for p in many.rglob("*.parquet")) / 1e6, 1)
        found["mb_one_file"] = round(sum(p.stat().st_size for p in one.rglob("*.parquet")) / 1e6, 2)
        shutil.rmtree(many)
    return found


def remote(parts: int) -> dict[str, Any]:
    """Requests of a scan, by method."""
    from pyarrow import fs
    from test_store_requests import CountingServer

    from idgbr.store import Store
    from sweeps import tables

    keys = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    os.environ.update(keys)
    server = CountingServer()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), parts)
        s3 = fs.S3FileSystem(endpoint_override=server.address, scheme="http", allow_bucket_creation=True)
        s3.create_dir("parts")
        fs.copy_files(folder, "parts/store", source_filesystem=fs.LocalFileSystem(), destination_filesystem=s3)
    server.counts.clear()
    store = Store(f"s3://parts/store?endpoint_override={server.address}&scheme=http")
    tables.scan(store, "trials", "many")
    found = {"s3_parts": parts, "s3_requests": dict(server.counts)}
    server.server.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--remote", type=int, default=1000)
    o = parser.parse_args()
    local(10)  # imports
    print(json.dumps({"parts": o.parts, **local(o.parts), **remote(o.remote), "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
