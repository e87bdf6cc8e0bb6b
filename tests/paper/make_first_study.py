"""The commands of docs/first-study.md, run on the miniature of Potsdam with tiny networks; prints each and what it prints.

    python tests/paper/make_first_study.py [FOLDER]

The page shows the commands as they are given at full size. Here those that train or plan also get tiny networks (one backbone in place of
four), one seed, and `--local`, so that the whole page takes about a minute on a CPU. What it prints has the form of a real run; its
scores mean nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "data")]
from paper_miniatures import TINY, TINY_SMALL, write_data_folder  # noqa: E402

PAGE = HERE.parents[1] / "docs" / "first-study.md"


def commands(page: str) -> list[str]:
    """Command lines of a page: those that begin with `$ ` in its blocks, joined where they end with a backslash."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+", " ", line[2:]).strip() for line in lines if line.startswith("$ ")]


def tiny_words() -> list[str]:
    """Settings that make the study small, as words of a command line."""
    weights = {"backbone.weights": "", "refiner.condition_weights": "data/weights/test_efficientnet.safetensors"}
    teacher = {"refiner.teacher": "test_vit", "refiner.teacher_weights": "data/weights/test_vit.safetensors"}
    settings = TINY | TINY_SMALL | weights | teacher
    words = [f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in settings.items()]
    return ["seeds=1", *words]


def run(command: str) -> str:
    """What the command prints on the miniature; errors too."""
    from idgbr import cli
    from sweeps import __main__ as sweeps

    program, *words = shlex.split(command)
    main, words = (sweeps.main, words[2:]) if program == "python" else (cli.main, words)
    if words[0] in ("plan", "run"):
        words += tiny_words() + (["--local"] if words[0] == "run" else [])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main(words)
        except SystemExit as ended:
            if ended.code:
                print(f"[exit code {ended.code}]")
    return out.getvalue().strip()


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="idgbr-first-study-"))
    folder.mkdir(parents=True, exist_ok=True)
    page = PAGE.read_text()
    os.chdir(folder)
    if not Path("data").exists():
        Path("data").mkdir()
        write_data_folder(Path("data"))
    os.environ |= {"IDGBR_DATA": "data", "IDGBR_STORE": "store", "COLUMNS": "120"}
    for command in commands(page):
        print(f"$ {command}\n{run(command)}\n", flush=True)


if __name__ == "__main__":
    main()
