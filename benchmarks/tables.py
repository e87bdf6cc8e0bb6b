"""Table of a large study: 5,000 trials x 1,000 tiles x 6 classes, synthetic. The last line is JSON: seconds, peak_gb.

    python benchmarks/tables.py [--trials 5000] [--root FOLDER]

Counts are drawn for a few error rates and written for every trial under its own name (35 million rows with those of whole tiles), so that
writing them takes minutes and not hours; reading them is what is measured, in a process of its own. With --root they are kept and reused.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests" / "analysis")]

COLUMNS = {
    "class", "valid", "ignored", "tp", "fp", "fn", "biou_intersection", "biou_union", "wfm_edge_target", "wfm_edge_pred",
    "wfm_edge_target_loss", "wfm_edge_rest_loss", "kept", "repaired", "damaged", "still_wrong",
}  # fmt: skip
TEMPLATES = 24


def write(root: Path, n_trials: int) -> None:
    """The study: guidance width x steps x 5 seeds, and the coarse map."""
    import make_tables as m
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from idgbr.scores.schema import COUNTS_SCHEMA
    from idgbr.store import Store
    from sweeps import tables
    from sweeps.study import Axis, Study, expand

    steps = max(1, n_trials // (25 * 5))
    axes = (Axis("refiner.guidance_width", tuple(range(8, 208, 8))), Axis("sampler.steps", tuple(range(1, steps + 1))))
    study = Study(name="large", recipe="synthetic", axes=axes, replicates=5, yardsticks=("coarse",))
    layout = m.Layout(scenes=40, tiles=25, n_classes=6)
    tiles, store, rng = m.Tiles(layout), Store(root), np.random.default_rng(0)
    made = {}
    folder = root / "tables" / "counts" / "study=large"
    folder.mkdir(parents=True, exist_ok=True)
    for i, trial in enumerate(expand(study)):
        template = -1 if trial.role == "coarse" else i % TEMPLATES
        if template not in made:
            rates = (0.10, 0.45) if template < 0 else (0.086 - 0.001 * (template // 6), 0.34 - 0.01 * (template // 3))
            noise = np.exp(rng.normal(0, 0.03, layout.scenes))
            counts = {k: v for k, v in tiles.counts(*rates, "full", rng, noise).items() if k in COLUMNS}
            made[template] = m._table(COUNTS_SCHEMA, tiles.identity("", layout.n_classes + 1, "full"), counts)
        table = made[template]
        column = pa.DictionaryArray.from_arrays(np.zeros(table.num_rows, np.int32), [trial.id]).cast(pa.string())
        pq.write_table(table.set_column(0, "trial", column).replace_schema_metadata(COUNTS_SCHEMA.metadata), folder / f"{trial.id}.parquet")
        tables.write_trial(store, "large", m.row_of(trial))


def measure(root: Path) -> None:
    """The table, in this process; prints what it took."""
    from sweeps.analysis.request import Comparison, Output
    from sweeps.report.commands import table

    started, cpu = time.perf_counter(), time.process_time()
    table(["large"], Comparison(stores=(str(root),)), Output(json=True, out=str(root / "table.json")))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rows = len(json.loads((root / "table.json").read_text())[0]["rows"])
    n = sum(1 for _ in (root / "tables" / "trials" / "study=large").iterdir())
    print(
        json.dumps(
            {
                "seconds": round(time.perf_counter() - started, 2),
                "cpu_seconds": round(time.process_time() - cpu, 2),
                "peak_gb": round(peak, 2),
                "trials": n,
                "tiles": 1000,
                "classes": 6,
                "variants": rows,
                "cores": os.cpu_count(),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--root", default="")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(Path(options.root))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(options.root or temporary)
        if not (root / "written").exists():
            started = time.perf_counter()
            write(root, options.trials)
            (root / "written").write_text("")
            print(f"written in {time.perf_counter() - started:.0f} s", flush=True)
        subprocess.run([sys.executable, __file__, "--measure", "--root", str(root)], check=True)


if __name__ == "__main__":
    main()
