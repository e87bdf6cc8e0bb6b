"""Columns of the two count tables. Every score is a pure function of these numbers (`read.py`).

counts.parquet  one row per tile x class, and one row of class -1 with what belongs to the whole tile
bands.parquet   one row per tile x class x band of distance to the target's boundary (class -1: all classes)

Integer columns add up over tiles, exactly and in any order: the weighted losses of the F-measure (`_loss`) are whole
numbers of 2^-32 px. Floating point columns are values of one tile taken by itself: they do not add up, and are
averaged over the tiles where they are not null.
"""

from __future__ import annotations

import pyarrow as pa

VERSION = 1
LOSS_UNIT = 2.0**-32  # px; a quantum of 2e-10 px is far below any tolerance, and int64 holds 2e9 px of loss
TRIMAP_WIDTHS_PX = (1, 3, 5, 10)
MAX_LEVELS = 10

IDENTITY = (
    ("trial", pa.string()),
    ("split", pa.string()),
    ("label_set", pa.string()),
    ("scene", pa.string()),
    ("raster", pa.string()),
    ("row", pa.int32()),
    ("col", pa.int32()),
    ("block", pa.string()),
    ("class", pa.int16()),
)

RATES = ("tp", "fp", "fn")
LEDGER = ("kept", "repaired", "damaged", "still_wrong")  # by target class; their sum is the valid pixels
BOUNDARY_IOU = ("biou_intersection", "biou_union")
BOUNDARY_F = ("bf_pred_hits", "bf_pred_pixels", "bf_target_hits", "bf_target_pixels")
TRIMAP = tuple(f"trimap_{r}" for r in RATES)  # width score.trimap_px
TRIMAPS = tuple(f"trimap{w}_{r}" for w in TRIMAP_WIDTHS_PX for r in RATES)
JOINT = tuple(f"joint_{t}{c}{r}" for t in (0, 1) for c in (0, 1) for r in (0, 1))  # one against the rest: target, coarse, refined
ENERGIES = tuple(f"t{j}" for j in range(MAX_LEVELS + 1))
WFM = tuple(f"wfm_{kind}_{what}" for kind in ("region", "edge") for what in ("target", "pred", "target_loss", "rest_loss"))
MBA = tuple(f"mba{i}_{what}" for i in range(5) for what in ("hits", "pixels"))

# Columns filled in rows of a class; the ledger and the energies stand in the rows of class -1 as well.
PER_CLASS = (*RATES, *BOUNDARY_IOU, *BOUNDARY_F, *TRIMAP, *TRIMAPS, *LEDGER, *JOINT, *ENERGIES, *WFM)
PER_CLASS_VALUES = ("wfm_region_legacy_value", "hd95", "hd95_directed", "hausdorff", "assd_sum", "assd_pixels")
PER_TILE = ("valid", "correct", "ignored", "outside", *MBA)  # outside: valid pixels with a prediction outside the classes
PER_TILE_VALUES = ("wfm_edge_legacy_0_value", "wfm_edge_legacy_1_value")


def _kind(name: str) -> pa.DataType:
    return pa.float64() if name.endswith(("_value", "_sum")) or name.startswith(("hd95", "hausdorff")) else pa.int64()


COUNTS_SCHEMA = pa.schema(
    [
        *IDENTITY,
        *((name, _kind(name)) for name in (*PER_CLASS, *PER_CLASS_VALUES, *PER_TILE, *PER_TILE_VALUES)),
        ("predicted_as", pa.list_(pa.field("element", pa.int64()))),  # row of the confusion matrix [K + 1]; the last: outside the classes
    ],
    metadata={"idgbr.table": "counts", "idgbr.version": str(VERSION)},
)

BANDS_SCHEMA = pa.schema(
    [
        *IDENTITY,
        ("low_px", pa.float64()),
        ("high_px", pa.float64()),  # low < distance <= high; high is inf in the last band
        *((name, pa.int64()) for name in ("valid", "correct", *RATES, *LEDGER)),
    ],
    metadata={"idgbr.table": "bands", "idgbr.version": str(VERSION)},
)
