"""`rio idgbr`: `idgbr refine` as a command of rasterio's `rio`, which finds it by the entry point in pyproject.toml."""

from __future__ import annotations

import click


@click.command("idgbr", short_help="Sharpen a class map of a scene.")
@click.argument("scene", type=click.Path(exists=True, dir_okay=False))
@click.argument("coarse", type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The refined class map, a GeoTIFF.")
@click.option("--model", default="general", show_default=True, help="A refiner's folder, its key in the store, or general.")
@click.option("--reach-px", type=float, help="Pixels farther than this from a coarse boundary are never changed.")
@click.option("--style/--no-style", default=True, show_default=True, help="Also write a style for QGIS beside the map.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
def rio_idgbr(scene: str, coarse: str, output: str, model: str, reach_px: float | None, style: bool, overwrite: bool) -> None:
    """Sharpen COARSE, a class map or probabilities of any model, with the image SCENE on the same grid.

    Prints the files written, last the map. `idgbr refine --help` has more settings.
    """
    from idgbr.cli import main

    words = ["refine", scene, coarse, "-o", output, "--model", model]
    words += ["--reach-px", str(reach_px)] if reach_px is not None else []
    words += [flag for flag, given in (("--style", style), ("--overwrite", overwrite)) if given]
    main(words)
