"""A style for QGIS beside a class map: names and colours of the classes. QGIS reads NAME.qml when it opens NAME.tif."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

from idgbr.files import replacing

if TYPE_CHECKING:
    from idgbr.labels import ClassTable


def style_path(map: Path) -> Path:
    """The file of the style beside a map."""
    return map.with_suffix(".qml")


def write_style(path: Path, table: ClassTable) -> None:
    """Write the style of a map of class indices: QGIS's renderer of paletted bands, one entry a class.

    Raises:
        NoSpace, Outage, Missing: it cannot be written.
    """
    root = ET.Element("qgis", version="3.0")
    renderer = ET.SubElement(ET.SubElement(root, "pipe"), "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1")
    palette = ET.SubElement(renderer, "colorPalette")
    for index, (name, colour) in enumerate(zip(table.names, table.colors)):
        red, green, blue = colour
        ET.SubElement(palette, "paletteEntry", value=str(index), label=name, color=f"#{red:02x}{green:02x}{blue:02x}", alpha="255")
    ET.indent(root)
    with replacing(path) as temporary:
        ET.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
