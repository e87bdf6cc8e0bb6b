"""`idgbr doctor`: what is installed, missing, reachable on this machine. Cluster-wide checks: `python -m cluster
doctor`."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from pathlib import Path

from idgbr.errors import IdgbrError, Missing
from idgbr.store import Store

NEEDED = ("torch", "timm", "segmentation-models-pytorch", "diffusers", "safetensors", "numpy", "scipy", "opencv-python-headless",
          "rasterio", "pyarrow", "polars", "tyro", "rich", "matplotlib", "jinja2", "ray", "optuna")  # fmt: skip
LOW_DISK_GB = 5.0


def doctor(store: str) -> None:
    """Print one line a check.

    Raises:
        Missing: something needed is not there; the lines say what and where it was looked for.
    """
    missing: list[str] = []
    print(f"python      {sys.version.split()[0]}  {sys.executable}")
    for name in NEEDED:
        try:
            print(f"package     {name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"package     {name} MISSING (looked in {sys.prefix})")
            missing.append(name)
    if "torch" not in missing:
        import torch

        if torch.cuda.is_available():
            for i in range(torch.cuda.device_count()):
                free, total = torch.cuda.mem_get_info(i)
                print(f"gpu {i}       {torch.cuda.get_device_name(i)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
        else:
            print(f"gpu         none seen; CPU with {torch.get_num_threads()} threads")
    try:
        place = Store(store)
        place.check_writable()
        print(f"store       {store} readable and writable")
        if place.is_local:
            free_gb = shutil.disk_usage(place.base).free / 1e9
            print(f"disk        {free_gb:.0f} GB free at {Path(place.base)}{'  LOW' if free_gb < LOW_DISK_GB else ''}")
            if free_gb < LOW_DISK_GB:
                missing.append(f"disk space at {place.base}")
    except IdgbrError as error:
        print(f"store       {error}")
        missing.append(f"store {store}")
    if missing:
        raise Missing(
            f"not there: {', '.join(missing)}", hint="pip install -c constraints.txt -e . in the project's folder, or --store FOLDER"
        )
