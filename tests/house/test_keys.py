"""Stage keys stay the same, so that artefacts stored by an earlier version are found again."""

from __future__ import annotations

import hashlib
import json

import pytest

from idgbr import stages
from sweeps.studies import coarse_quality, quickstart, search_refiner
from sweeps.study import expand

# First 16 digits of the SHA-256 of every (trial id, [(stage, name, key)]) of the study, as JSON.
KEYS = {quickstart: "72cf1a67cad2e59d", coarse_quality: "eeb4e77ef401a43b", search_refiner: "11492a0ad68da83b"}


@pytest.mark.parametrize("study", KEYS, ids=lambda s: s.__name__)
def test_keys_of_stored_studies_stay(study) -> None:
    keys = [[t.id, [(j.stage, j.name, j.key) for j in stages.jobs(t.experiment)]] for t in expand(study())]
    assert keys
    assert hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16] == KEYS[study]
