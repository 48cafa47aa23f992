import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from phosphene.codes import ImageCode
from phosphene.engine import EngineRow
from phosphene.fidelity import Fidelity
from service.caching.coded_image import CodedImage, coded_image_bytes, read_coded_image

COUNTS = st.integers(0, 2**32 - 1)
FLOATS = st.floats(allow_nan=False)
IDS = {"elements": st.integers(0, 2**31 - 1)}


@st.composite
def coded_images(draw):
    active = draw(st.integers(0, 8))
    tokens = draw(st.none() | arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=4))
    return CodedImage(
        sha256=draw(st.binary(min_size=32, max_size=32)).hex(),
        width=draw(COUNTS),
        height=draw(COUNTS),
        drafted=draw(st.booleans()),
        row=EngineRow(
            code=ImageCode(
                neuron_ids=draw(arrays.arrays(np.int32, active, **IDS)),
                values=draw(arrays.arrays(np.float32, active)),
                cut_count=draw(COUNTS),
            ),
            token_values=None if tokens is None else draw(arrays.arrays(np.float32, tokens)),
            token_neuron_ids=None if tokens is None else draw(arrays.arrays(np.int64, tokens, **IDS)),
            fidelity=draw(
                st.none()
                | st.builds(
                    Fidelity,
                    fvu=FLOATS,
                    cosine=FLOATS,
                    l0=FLOATS,
                    residual_norm=FLOATS,
                    cut_count=st.integers(0, 2**40),
                )
            ),
            residual=draw(st.none() | arrays.arrays(np.float32, st.integers(0, 5))),
            scores=draw(st.none() | arrays.arrays(np.float32, st.integers(0, 5))),
            embedding=draw(st.none() | arrays.arrays(np.float32, st.integers(0, 5))),
        ),
    )


def assert_same(left, right):
    """Equal to the bit, field by field, however deep."""
    for field in dataclasses.fields(left):
        ours, theirs = getattr(left, field.name), getattr(right, field.name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            assert ours.tobytes() == theirs.tobytes()
        elif dataclasses.is_dataclass(ours):
            assert_same(ours, theirs)
        else:
            assert ours == theirs, field.name


def test_whoever_adds_a_field_to_the_row_must_think_of_this_layout():
    kept = {"code", "token_values", "token_neuron_ids", "fidelity", "residual", "scores", "embedding"}
    assert {field.name for field in dataclasses.fields(EngineRow)} == kept


@given(coded_images())
def test_comes_back_to_the_bit(image):
    read = read_coded_image(coded_image_bytes(image))
    assert_same(image, read)
    assert read.row.code.values.flags.writeable


@given(coded_images(), st.data())
def test_one_that_is_cut_or_lengthened_is_refused(image, data):
    whole = coded_image_bytes(image)
    with pytest.raises(ValueError, match="cached image"):
        read_coded_image(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match="after its end"):
        read_coded_image(whole + b"x")


@given(coded_images(), st.data())
def test_any_change_is_refused_or_gives_another_value(image, data):
    whole = bytearray(coded_image_bytes(image))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << (bit % 8)
    try:
        read = read_coded_image(bytes(whole))
    except ValueError:
        return
    assert coded_image_bytes(read) == bytes(whole)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_words(data):
    with pytest.raises(ValueError, match="cached image"):
        read_coded_image(data)


def test_a_count_beyond_the_data_costs_no_memory():
    image = coded_image_bytes(
        CodedImage(
            sha256="00" * 32,
            width=1,
            height=1,
            drafted=False,
            row=EngineRow(code=ImageCode(neuron_ids=np.zeros(0, np.int32), values=np.zeros(0, np.float32))),
        )
    )
    with pytest.raises(ValueError, match="ends"):
        read_coded_image(image[:-8] + b"\xff\xff\xff\xff" + image[-4:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "00"}, "64 hexadecimal"),
        ({"width": -1}, "cannot hold"),
        ({"height": 2**32}, "cannot hold"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(change, message):
    row = EngineRow(code=ImageCode(neuron_ids=np.zeros(0, np.int32), values=np.zeros(0, np.float32)))
    image = CodedImage(sha256="00" * 32, width=1, height=1, drafted=False, row=row)
    with pytest.raises(ValueError, match=message):
        coded_image_bytes(dataclasses.replace(image, **change))


def test_neuron_ids_beyond_the_layout_are_refused():
    row = EngineRow(
        code=ImageCode(neuron_ids=np.zeros(0, np.int32), values=np.zeros(0, np.float32)),
        token_values=np.ones((1, 1), np.float32),
        token_neuron_ids=np.full((1, 1), 2**31, np.int64),
    )
    with pytest.raises(ValueError, match="neuron ids"):
        coded_image_bytes(CodedImage(sha256="00" * 32, width=1, height=1, drafted=False, row=row))
