"""Every command line of README.md, CONTRIBUTING.md and docs/ is understood by its program. docs/first-study.md: test_first_study.py."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import __main__ as cluster_verbs
from idgbr import cli
from idgbr.verbs import run_verbs
from sweeps import __main__ as sweep_verbs

ROOT = Path(__file__).parents[2]
HISTORY = "log.md"  # commands of their day
PROGRAMS = {"idgbr ": cli.VERBS, "python -m sweeps ": sweep_verbs.VERBS, "python -m cluster ": cluster_verbs.VERBS}


def commands() -> list[tuple[str, str, str]]:
    """(page, program, rest of the line) of the lines in blocks that begin with a program, joined where they end with a backslash."""
    found = []
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL) if page.name != HISTORY else []
        for line in re.split(r"\n| && | \| |; ", "\n".join(blocks).replace("\\\n", " ")):
            line = line.strip().removeprefix("$ ")
            found += [(page.name, program, line.removeprefix(program)) for program in PROGRAMS if line.startswith(program)]
    return found


@pytest.mark.parametrize(("page", "program", "line"), commands())
def test_the_command_is_understood(page: str, program: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    own = words[: words.index("--")] if "--" in words else words  # what follows is the command of a job

    def idle(verb: Callable[..., None]) -> Callable[..., None]:
        return functools.wraps(verb)(lambda *_, **__: None)

    assert run_verbs({name: idle(verb) for name, verb in PROGRAMS[program].items()}, program, "", own) == 0
