"""Scores as the authors' code computes them (IDGBR, commit d4fc096), defects included, so that published numbers can
be compared.

Known defects, none of which the corrected scores share:
- WF(3px) is blind to labels (a complement mask scores 1), cancels on 1-px structures, treats ignored areas as edges,
  and depends on the values in the files; here it gets class indices and 255, the best case.
- Classes whose mean score is 0 are dropped from its `min`, so a map without any object is reported with the non-edge
  score.
- False positives on images without the class never enter a weighted F.
- IoU and F1 of classes that are nowhere count as 0; predictions outside the classes are left out of the confusion
  matrix (not computed here).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.scores.region import Map
from idgbr.scores.wfm import sums, weighted_f


def edge_band(labels: Map, kernel: int = 3) -> Map:
    """1 on the authors' edge band of raw values, else 0 (`extract_edge_map` and `lt255`).

    Sobel 3 x 3 of the raw uint8 values, reflected at the frame, gradient not 0, dilated by kernel x kernel; pixels of
    value 255 drop out. With kernel 3 the band is 4 px wide on straight edges. int16 gradients are 0 exactly where the
    authors' float64 magnitude is.
    """
    edge = (cv2.Sobel(labels, cv2.CV_16S, 1, 0) != 0) | (cv2.Sobel(labels, cv2.CV_16S, 0, 1) != 0)
    band = cv2.dilate(edge.view(np.uint8), np.ones((kernel, kernel), np.uint8))
    return (band & (labels < 255).view(np.uint8)).astype(np.uint8, copy=False)


def edge_f(pred: Map, target: Map, kernel: int = 3) -> NDArray[np.float64]:
    """[2]: weighted F of (non-edge, edge) of one image; NaN where the target's band map lacks the class (the authors
    skip it).

    A data set's WF(3px): mean of each over images, then the smaller of the means above 0 (`formulas.legacy_min`).
    """
    a, b = edge_band(pred, kernel), edge_band(target, kernel)
    s = sums(a, b, 2, (0, a.shape[0], 0, a.shape[1]))
    return weighted_f(s.target, s.target_loss, s.rest_loss)
