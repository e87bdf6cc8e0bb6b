"""Data sets as they are unpacked from their publishers, own folders, and synthetic scenes: all of them become
`Dataset`."""

from idgbr.datasets.index import BandStats, Dataset, Raster, load
from idgbr.datasets.scan import input_digest, prepare, rehash
from idgbr.datasets.sources import SOURCES, layout

__all__ = ["SOURCES", "BandStats", "Dataset", "Raster", "input_digest", "layout", "load", "prepare", "rehash"]
