"""idgbr: boundary refinement for remote sensing segmentation (IDGBR, TPAMI 2026). The method; it knows no Ray."""

__version__ = "0.1.0"
