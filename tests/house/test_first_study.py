"""Every command of docs/first-study.md is one: the verb, its options, its study or recipe and its settings exist."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import __main__ as cluster_verbs
from idgbr import cli
from idgbr.recipes import experiment
from idgbr.verbs import run_verbs
from sweeps import __main__ as sweep_verbs
from sweeps.run.overrides import study_with
from sweeps.studies import find

PAGE = Path(__file__).parents[2] / "docs" / "first-study.md"
PROGRAMS = {"idgbr": cli.VERBS, "sweeps": sweep_verbs.VERBS, "cluster": cluster_verbs.VERBS}


def commands() -> list[list[str]]:
    """Words of each command line of the page: those that begin with `$ ` in its blocks, joined where they end with a backslash."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:]) for line in lines if line.startswith("$ ")]


def of_program(words: list[str]) -> tuple[str, list[str]] | None:
    if words[:2] == ["python", "-m"]:
        return words[2], words[3:]
    return ("idgbr", words[1:]) if words[0] == "idgbr" else None


OURS = [found for words in commands() if (found := of_program(words))]


@pytest.mark.parametrize(("program", "words"), OURS, ids=[" ".join([p, *w]) for p, w in OURS])
def test_the_command_is_understood(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by the program's own parser, with verbs that do nothing but take their arguments."""
    taken: list[tuple[Any, ...]] = []

    def idle(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def take(*positional: Any, **_: Any) -> None:
            taken.append(positional)

        return take

    assert run_verbs({name: idle(verb) for name, verb in PROGRAMS[program].items()}, program, "", words) == 0
    assert len(taken) == 1
    monkeypatch.setenv("IDGBR_DATA", "data")
    given = [word for word in words[1:] if not word.startswith("-")]
    if words[0] in ("plan", "run"):
        settings = [word for word in given[1:] if "=" in word]
        assert study_with(find(given[0]), settings).name == given[0]
    elif program == "sweeps":
        assert find(given[0]).name == given[0]
    elif words[0] in ("prepare", "config"):
        experiment(given[0])


def test_the_page_goes_from_the_data_to_a_published_table() -> None:
    verbs = [(program, words[0]) for program, words in OURS]
    assert verbs[0] == ("idgbr", "prepare")
    wanted = ("plan", "run", "status", "table", "publish", "verify")
    assert [verb for program, verb in verbs if program == "sweeps" and verb in wanted] == sorted(
        (verb for program, verb in verbs if program == "sweeps" and verb in wanted), key=wanted.index
    )
    assert {verb for _, verb in verbs} >= set(wanted)
