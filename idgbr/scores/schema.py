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


# ---- only where asked for -------------------------------------------------------------------------------------------------------

# score.objects: of each tile by itself (an object that a tile's frame cuts is two), in rows of a class
OBJECT_WIDTHS_PX = (1, 2, 4)
OBJECTS = (
    *(f"biou{w}_{what}" for w in OBJECT_WIDTHS_PX for what in ("intersection", "union")),
    *("objects_matched", "objects_pred", "objects_target"),
    *("perimeter_pred", "perimeter_target"),
    *("parts_error", "holes_error", "parts_target", "holes_target"),
)

# score.uncertainty: confidence is the probability of the class given, in 255ths; pixels that are right and wrong are
# counted by it, in bins of what it lacks to 255. Multiples of 17 are edges, so that the 15 bins of equal width of the
# calibration error are sums of these.
NEAR_PX = 5  # on either side of the target's boundaries
REGIONS = ("all", "near")
DOUBT_EDGES = (0, 1, 2, 3, 4, 6, 8, 11, 14, 17, 21, 25, 29, 34, 42, 51, 59, 68, 85, 102, 119, 136, 153, 170, 187, 204, 221, 238)  # lower
CALIBRATION_BINS = 15
VOTES = 16  # agreement of samples in sixteenths


def confidence_columns(region: str) -> dict[str, tuple[str, ...]]:
    """Names of the columns of a region ("all" pixels, or "near" the target's boundaries) by what they hold."""
    bins = range(len(DOUBT_EDGES))
    return {
        "right": tuple(f"confidence_{region}_right{b}" for b in bins),
        "wrong": tuple(f"confidence_{region}_wrong{b}" for b in bins),
        "total": tuple(f"confidence_{region}_total{b}" for b in range(CALIBRATION_BINS)),  # of the confidence
        "brier": (f"brier_{region}",),  # sum over classes of (p - y)^2, in units of 1/255^2
    }


VOTES_RIGHT = tuple(f"votes_right{v}" for v in range(VOTES + 1))
VOTES_WRONG = tuple(f"votes_wrong{v}" for v in range(VOTES + 1))
CONFIDENCE = tuple(name for region in REGIONS for names in confidence_columns(region).values() for name in names)
LEVELS = 4  # maps cut from probabilities, beside as many samples
ENERGY = (  # rows of a class
    "energy_iou_value", "energy_boundary_value", "spread_iou_value", "spread_boundary_value", "energy_iou_levels_value",
    "energy_boundary_levels_value",
)  # fmt: skip
UNCERTAINTY = (*CONFIDENCE, *VOTES_RIGHT, *VOTES_WRONG, *ENERGY)


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


def counts_schema(*, objects: bool = False, uncertainty: bool = False) -> pa.Schema:
    """Schema of counts with the columns that were asked for."""
    names = (*(OBJECTS if objects else ()), *(UNCERTAINTY if uncertainty else ()))
    return pa.schema([*COUNTS_SCHEMA, *((name, _kind(name)) for name in names)], metadata=COUNTS_SCHEMA.metadata)


BANDS_SCHEMA = pa.schema(
    [
        *IDENTITY,
        ("low_px", pa.float64()),
        ("high_px", pa.float64()),  # low < distance <= high; high is inf in the last band
        *((name, pa.int64()) for name in ("valid", "correct", *RATES, *LEDGER)),
    ],
    metadata={"idgbr.table": "bands", "idgbr.version": str(VERSION)},
)
