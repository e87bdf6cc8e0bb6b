"""docs/sweeps.md names every option of every verb."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeps.__main__ import VERBS, main

PAGE = Path(__file__).parents[2] / "docs" / "sweeps.md"


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_documented(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert not ended.value.code
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", capsys.readouterr().out)) - {"--help"}
    text = PAGE.read_text()
    documented = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    assert {o for o in options if o not in documented and o.replace("--no-", "--", 1) not in documented
            and o.replace("--", "--no-", 1) not in documented} == set()  # fmt: skip
    assert f"sweeps {verb}" in text or f"`{verb} " in text
