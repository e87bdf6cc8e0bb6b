"""The class table: codes and colours to indices and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idgbr.errors import Disagreement, Missing
from idgbr.labels import IGNORE, ClassTable, LabelClass, binary

COLOURS = st.tuples(*[st.integers(0, 255)] * 3)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(COLOURS, min_size=2, max_size=9, unique=True),
    st.lists(st.integers(0, 60000), min_size=9, max_size=9, unique=True),
    st.randoms(),
)
def test_colours_and_codes_come_back_as_the_indices_they_stand_for(colours: list, codes: list, random: object) -> None:
    *used, ignored = colours
    table = ClassTable(tuple(LabelClass(f"c{i}", (codes[i], c), c) for i, c in enumerate(used)), ignore=(codes[8], ignored))
    index = np.random.default_rng(0).integers(0, len(used), (6, 7)).astype(np.uint8)
    index[0, 0] = IGNORE
    numbers = np.array([*codes[: len(used)], *[0] * (255 - len(used)), codes[8]])[index]
    for dtype in (np.uint16, np.int32, np.float64):
        np.testing.assert_array_equal(table.encode(numbers.astype(dtype), "x"), index)
    shown = np.array([*used, *[(0, 0, 0)] * (255 - len(used)), ignored], np.uint8)[index]
    np.testing.assert_array_equal(table.encode(shown, "x"), index)
    np.testing.assert_array_equal(table.colorize(index)[index != IGNORE], shown[index != IGNORE])
    assert ClassTable.from_json(table.to_json()) == table


def test_zero_and_255_or_zero_and_one_or_grey_as_rgb_are_the_same_binary_mask() -> None:
    index = np.array([[0, 1], [1, 1]], np.uint8)
    table = binary("building")
    for raw in (index, index * np.uint8(255), index.astype(bool), np.repeat((index * np.uint8(255))[..., None], 3, -1)):
        np.testing.assert_array_equal(table.encode(raw, "x"), index)


def test_an_unknown_code_is_shown_with_a_histogram_of_all_codes() -> None:
    raw = np.array([[0, 0, 0, 0, 0, 0, 255, 255, 128, 3]], np.uint8)
    with pytest.raises(
        Disagreement, match=r"mask.png: codes .*0: 60.00%, 255: 20.00%, 3: 10.00%, 128: 10.00%.*background: 0; building: 255 1"
    ):
        binary("building").encode(raw, "mask.png")
    with pytest.raises(Disagreement, match=r"\(1, 2, 3\): 100.00%"):
        binary("building", codes=((9, 9, 9),)).encode(np.full((2, 2, 3), (1, 2, 3), np.uint8), "mask.png")
    with pytest.raises(Disagreement, match="whole numbers"):
        binary("building").encode(np.array([[0.5]]), "mask.png")


def test_a_table_that_contradicts_itself_is_refused(tmp_path: object) -> None:
    with pytest.raises(Disagreement, match="code 0 means both a and b"):
        ClassTable((LabelClass("a", (0,), (0, 0, 0)), LabelClass("b", (0,), (1, 1, 1))))
    with pytest.raises(Disagreement, match="stands twice"):
        ClassTable((LabelClass("a", (0,), (0, 0, 0)), LabelClass("a", (1,), (1, 1, 1))))
    with pytest.raises(Disagreement, match="not a class table"):
        ClassTable.from_json('{"classes": [{"name": "a", "codes": [[1, 2]], "color": [0, 0, 0]}]}', "table.json")
    with pytest.raises(Missing, match="no class table"):
        ClassTable.load("/nowhere/classes.json")


def test_tables_of_codes_take_no_text_for_numbers() -> None:
    for codes in (
        '["255"]',
        '["1", "2", "3"]',
        "255",
        '"255"',
        "[true]",
        "[1.5]",
        '[["1", 2, 3]]',
        "[[1, 2, 3.5]]",
        "[[1, 2]]",
        "[[1, 2, 300]]",
    ):
        text = f'{{"classes": [{{"name": "a", "codes": {codes}, "color": [0, 0, 0]}}, {{"name": "b", "codes": [7], "color": [1, 1, 1]}}]}}'
        with pytest.raises(Disagreement, match="not a class table"):
            ClassTable.from_json(text, "t.json")
    for color in ('"123"', '["1", "2", "3"]', "[0, 0]", "7", "[0.2, 0.4, 0.6]"):
        with pytest.raises(Disagreement, match="not a class table"):
            ClassTable.from_json(f'{{"classes": [{{"name": "a", "codes": [0], "color": {color}}}]}}', "t.json")
    good = ClassTable.from_json('{"classes": [{"name": "a", "codes": [0, [1, 2, 3], -5], "color": [0, 0, 0]}], "ignore": [255]}')
    assert good.classes[0].codes == (0, (1, 2, 3), -5)
    assert json.loads(good.to_json())["ignore"] == [255]


def test_codes_that_the_sample_type_cannot_hold_cannot_occur() -> None:
    table = ClassTable((LabelClass("a", (0, -1), (0, 0, 0)), LabelClass("b", (1, 2**40), (1, 1, 1))), (-9999, 70000))
    index = np.array([[0, 1], [1, 0]], np.uint8)
    for kind in ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"):
        np.testing.assert_array_equal(table.encode(index.astype(kind), kind), index)
    np.testing.assert_array_equal(table.encode(np.array([[-1, 2**40]]), "int64"), [[0, 1]])
    np.testing.assert_array_equal(table.encode(np.array([[-9999, 70000]], np.int32), "int32"), [[IGNORE, IGNORE]])
