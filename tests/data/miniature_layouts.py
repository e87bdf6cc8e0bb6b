"""Miniature copies of published data sets: real folder names, file names, codes, colour tables and compression; tiny, made-up pictures.

    python tests/data/miniature_layouts.py OUT      writes all of them below OUT

Every maker returns the truth: {raster id: (split, class indices [H,W] with 255 ignored, or None without a label)}.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

Truth = dict[str, tuple[str, np.ndarray | None]]
SIDE = 40
ISPRS = [(255, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0)]
DUBAI = ["3C1098", "8429F6", "6EC1E4", "FEDD3A", "E2A929"]


def drawn(name: str, n_classes: int, ignore: bool = False, height: int = SIDE, width: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H,W,3] and class indices uint8 [H,W], patches of 8 px, another pair for every name."""
    rng = np.random.default_rng(list(name.encode()))
    patches = rng.integers(0, n_classes, (height // 8 + 1, width // 8 + 1)).astype(np.uint8)
    patches.flat[:n_classes] = np.arange(n_classes)
    if ignore:
        patches[-2, 0] = 255
    index = np.kron(patches, np.ones((8, 8), np.uint8))[:height, :width]
    image = (index[..., None] % 16 * 30 + rng.integers(0, 60, (height, width, 3))).astype(np.uint8)
    return image, index


def tiff(path: Path, array: np.ndarray, **profile: object) -> None:
    """[H,W] or [H,W,C] as TIFF."""
    bands = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as file:
        file.write(bands)


def picture(path: Path, array: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def coloured(index: np.ndarray, colours: list[tuple[int, int, int]], ignore: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    lut = np.zeros((256, 3), np.uint8)
    lut[:] = ignore
    lut[: len(colours)] = colours
    return lut[index]


def chn6_cug(root: Path) -> Truth:
    truth: Truth = {}
    for folder, split, names in (
        ("train", "train", [f"{c}{100000 + i}" for c in ("am", "bj") for i in range(1, 11)]),
        ("val", "test", ["sh100901", "wh100902"]),
    ):
        for name in names:
            image, index = drawn(name, 2)
            picture(root / "CHN6-CUG" / folder / "images" / f"{name}_sat.jpg", image, quality=90)
            picture(root / "CHN6-CUG" / folder / "gt" / f"{name}_mask.png", index * np.uint8(255))
            truth[name] = ("val" if name in ("am100010", "bj100010") else split, index)
    return truth


def fgfd(root: Path) -> Truth:
    truth: Truth = {}
    for split, numbers in (("train", (1, 2, 3)), ("val", (4,)), ("test", (5, 6))):
        for number in numbers:
            image, index = drawn(f"fgfd{number}", 3)
            tiff(root / split / "img" / f"GF2_image_{number}.tif", image)
            paletted = Image.fromarray(index, "P")
            paletted.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])  # background, farmland without crops, with crops
            (root / split / "label").mkdir(parents=True, exist_ok=True)
            paletted.save(root / split / "label" / f"GF2_label_{number}.png")
            truth[f"GF2_{number}"] = (split, (index > 0).astype(np.uint8))
    return truth


def whu_building(root: Path, image_folder: str = "image", label_folder: str = "label") -> Truth:
    """The publisher's labels are TIFFs of 1 bit, CCITT run lengths, white is zero; the mirror's are 8 bits."""
    truth: Truth = {}
    for split, numbers in (("train", (0, 1, 2)), ("val", (0, 1)), ("test", (0, 1))):  # numbers begin again in every split
        for number in numbers:
            image, index = drawn(f"whu{split}{number}", 2)
            tiff(root / split / image_folder / f"{number}.tif", image)
            label = root / split / label_folder / f"{number}.tif"
            if label_folder == "label":
                picture(label, index.astype(bool), compression="tiff_ccitt", tiffinfo={262: 0})
            else:
                tiff(label, index * np.uint8(255), compress="lzw")
            truth[f"{split}_{image_folder.lower()}_{number}"] = (split, index)
    return truth


def whu_building_mirror(root: Path) -> Truth:
    return whu_building(root, "Image", "Mask")


def _massachusetts(root: Path, numbers: dict[str, list[str]], code: Callable[[np.ndarray], np.ndarray], title: str) -> Truth:
    truth: Truth = {}
    for folder, names in numbers.items():
        for name in names:
            image, index = drawn(title + name, 2)
            tiff(root / folder / "sat" / f"{name}.tiff", image)
            tiff(root / folder / "map" / f"{name}.tif", code(index))
            truth[name] = ({"valid": "val"}.get(folder, folder), index)
    return truth


def massachusetts_roads(root: Path) -> Truth:
    names = {"train": ["10078660_15", "10078675_15"], "valid": ["10228705_15"], "test": ["10378780_15"]}
    return _massachusetts(root, names, lambda index: index * np.uint8(255), "roads")


def massachusetts_buildings(root: Path) -> Truth:
    names = {"train": ["22678915_15", "22678930_15"], "valid": ["22978945_15"], "test": ["22828930_15"]}
    return _massachusetts(root, names, lambda index: coloured(index, [(0, 0, 0), (255, 0, 0)]), "buildings")


def massachusetts_buildings_mirror(root: Path) -> Truth:
    truth: Truth = {}
    for folder, split in (("train", "train"), ("val", "val"), ("test", "test")):
        name = {"train": "22678915_15", "val": "22978945_15", "test": "22828930_15"}[split]
        image, index = drawn(name, 2)
        tiff(root / "tiff" / folder / f"{name}.tiff", image)
        tiff(root / "tiff" / f"{folder}_labels" / f"{name}.tif", coloured(index, [(0, 0, 0), (255, 255, 255)]))
        truth[name] = (split, index)
    return truth


def inria(root: Path) -> Truth:
    truth: Truth = {}
    for city in ("austin", "tyrol-w"):
        for number in range(1, 8):
            image, index = drawn(f"{city}{number}", 2)
            where = {"crs": "EPSG:26914", "transform": from_origin(616500 + number * 100, 3345000, 0.3, 0.3)}
            tiff(root / "AerialImageDataset" / "train" / "images" / f"{city}{number}.tif", image, **where)
            tiff(root / "AerialImageDataset" / "train" / "gt" / f"{city}{number}.tif", index * np.uint8(255), compress="packbits", **where)
            truth[f"{city}{number}"] = ("val" if number <= 5 else "train", index)
    tiff(root / "AerialImageDataset" / "test" / "images" / "sfo1.tif", drawn("sfo1", 2)[0])
    truth["sfo1"] = ("test", None)
    return truth


def loveda(root: Path) -> Truth:
    truth: Truth = {}
    for folder, area, number in (
        ("Train", "Urban", 1366),
        ("Train", "Rural", 0),
        ("Val", "Urban", 3514),
        ("Val", "Rural", 2522),
        ("Test", "Rural", 4191),
    ):
        image, index = drawn(f"loveda{number}", 7, ignore=True)
        picture(root / folder / area / "images_png" / f"{number}.png", image)
        if folder != "Test":
            picture(root / folder / area / "masks_png" / f"{number}.png", np.where(index == 255, 0, index + 1).astype(np.uint8))
        truth[f"{area.lower()}_{number}"] = (folder.lower(), index if folder != "Test" else None)
    return truth


def landcover_ai(root: Path) -> Truth:
    """Without the chips that split.py makes."""
    truth: Truth = {}
    names = ["M-33-20-D-c-4-2", "M-33-20-D-d-3-3", "M-33-32-B-b-4-4", "M-33-48-A-c-4-4", "M-33-7-A-d-2-3"]
    for name, split in zip(names, ("train", "train", "train", "val", "test"), strict=True):
        image, index = drawn(name, 5)
        where = {"crs": "EPSG:2180", "transform": from_origin(258000, 516000, 0.25, 0.25)}
        tiff(root / "images" / f"{name}.tif", image, **where)
        tiff(root / "masks" / f"{name}.tif", index, **where)
        truth[name] = (split, index)
    return truth


def landcover_ai_chips(root: Path) -> Truth:
    """With the chips: split.py writes masks by way of OpenCV, so they are grey pictures with three bands."""
    landcover_ai(root)
    truth: Truth = {}
    for split, numbers in (("train", (0, 2, 3)), ("val", (1,)), ("test", (4,))):
        for number in numbers:
            name = f"M-33-20-D-c-4-2_{number}"
            image, index = drawn(name, 5)
            picture(root / "output" / f"{name}.jpg", image)
            picture(root / "output" / f"{name}_m.png", np.repeat(index[..., None], 3, -1))
            truth[name] = (split, index)
        (root / f"{split}.txt").write_text("".join(f"M-33-20-D-c-4-2_{n}\n" for n in numbers))
    return truth


POTSDAM_TRAIN = [
    f"{row}_{col}" for row, cols in ((2, (10, 11, 12)), (3, (10, 11, 12)), (4, (10, 11, 12)), (5, (10, 11, 12))) for col in cols
]
POTSDAM_TRAIN += [f"{row}_{col}" for row in (6, 7) for col in range(7, 13)]
POTSDAM_TEST = ["2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15", "5_13", "5_14", "5_15", "6_13", "6_14", "6_15", "7_13"]


def potsdam(root: Path) -> Truth:
    """All 38 tiles, three composites, full and eroded labels; the full label of 4_12 as in 5_Labels_all.zip: drawn over the image."""
    truth: Truth = {}
    for name in POTSDAM_TRAIN + POTSDAM_TEST:
        image, index = drawn(f"potsdam{name}", 6, height=SIDE, width=SIDE)
        near_infrared = 255 - image[..., :1]
        world = "0.05\n0\n0\n-0.05\n366676.6\n5808199.0\n"
        for folder, kind, array in (
            ("2_Ortho_RGB", "RGB", image),
            ("3_Ortho_IRRG", "IRRG", np.concatenate([near_infrared, image[..., :2]], -1)),
            ("4_Ortho_RGBIR", "RGBIR", np.concatenate([image, near_infrared], -1)),
        ):
            tiff(root / folder / f"top_potsdam_{name}_{kind}.tif", array, compress="lzw")
            (root / folder / f"top_potsdam_{name}_{kind}.tfw").write_text(world)
        label = coloured(index, ISPRS)
        tiff(root / "5_Labels_all" / f"top_potsdam_{name}_label.tif", image if name == "4_12" else label, compress="lzw")
        tiff(root / "5_Labels_all_noBoundary" / f"top_potsdam_{name}_label_noBoundary.tif", coloured(eroded(index), ISPRS), compress="lzw")
        if name == "4_12":
            continue
        split = "test" if name in POTSDAM_TEST else "val" if name in ("2_10", "3_12", "6_8", "7_11") else "train"
        truth[f"potsdam_{name}"] = (split, index)
    return truth


def vaihingen(root: Path) -> Truth:
    """All 33 areas of different size; full labels in the root, as the COMPLETE archive unpacks."""
    truth: Truth = {}
    test = (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38)
    for area in (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37, *test):
        image, index = drawn(f"vaihingen{area}", 6, height=SIDE + area % 5, width=SIDE + area % 3)
        name = f"top_mosaic_09cm_area{area}"
        tiff(root / "top" / f"{name}.tif", image)
        tiff(root / f"{name}.tif", coloured(index, ISPRS))
        tiff(root / "gts_eroded" / f"{name}_noBoundary.tif", coloured(eroded(index), ISPRS))
        truth[f"vaihingen_{area}"] = ("test" if area in test else "val" if area in (5, 15, 21, 30) else "train", index)
    return truth


def eroded(index: np.ndarray) -> np.ndarray:
    """255 within a pixel of a class border."""
    out = index.copy()
    out[:, 1:][index[:, 1:] != index[:, :-1]] = 255
    out[1:][index[1:] != index[:-1]] = 255
    return out


def dubai_landcover(root: Path) -> Truth:
    """Tiles as in the download, without any split table; tile 2 has paletted masks; tiles 2 and 4 and part 1 of tile 1 are not used."""
    colours = [tuple(bytes.fromhex(text)) for text in DUBAI]
    truth: Truth = {}
    for tile in range(1, 9):
        for part in range(1, 10):
            image, index = drawn(f"dubai{tile}{part}", 5, ignore=True, height=SIDE, width=SIDE + tile)
            folder = root / "Semantic segmentation dataset" / f"Tile {tile}"
            picture(folder / "images" / f"image_part_{part:03d}.jpg", image)
            picture(folder / "masks" / f"image_part_{part:03d}.png", coloured(index, colours, (0x9B, 0x9B, 0x9B)))
            if tile == 2:
                paletted = Image.fromarray(np.where(index == 255, 5, index).astype(np.uint8), "P")
                paletted.putpalette([*(v for colour in colours for v in colour), 0x9B, 0x9B, 0x9B])
                paletted.save(folder / "masks" / f"image_part_{part:03d}.png")
            split = {1: "test", 3: "val"}.get(tile, "train")
            if tile not in (2, 4) and (tile, part) != (1, 1):
                truth[f"tile{tile}_part{part}"] = (split, index)
    return truth


LAYOUTS: dict[str, tuple[str, Callable[[Path], Truth]]] = {
    "CHN6-CUG": ("chn6_cug", chn6_cug),
    "FGFD": ("fgfd", fgfd),
    "WHU as published": ("whu_building", whu_building),
    "WHU as mirrored": ("whu_building", whu_building_mirror),
    "Massachusetts roads": ("massachusetts_roads", massachusetts_roads),
    "Massachusetts buildings": ("massachusetts_buildings", massachusetts_buildings),
    "Massachusetts buildings as mirrored": ("massachusetts_buildings", massachusetts_buildings_mirror),
    "INRIA": ("inria", inria),
    "LoveDA": ("loveda", loveda),
    "LandCover.ai photos": ("landcover_ai", landcover_ai),
    "LandCover.ai chips": ("landcover_ai", landcover_ai_chips),
    "Potsdam": ("potsdam", potsdam),
    "Vaihingen": ("vaihingen", vaihingen),
    "Dubai": ("dubai_landcover", dubai_landcover),
}

if __name__ == "__main__":
    for title, (_, make) in LAYOUTS.items():
        print(f"{title}: {len(make(Path(sys.argv[1]) / title))} rasters")
