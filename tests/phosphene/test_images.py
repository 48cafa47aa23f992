"""Decoding: every kind of JPEG, PNG and WebP becomes the upright RGB that a viewer shows on white."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from phosphene.errors import ImageError, ImageFormatUnsupported, ImageUnreadable
from phosphene.images import image_sha256, overlay, prepare, prepare_with_thumbnail, read_image, thumbnail
from phosphene.preprocessing import ExactSize, Preprocessing
from tests.phosphene.png_writer import CHANNELS, chunk, encoded, packed_rows, photo, png_bytes, seen_over_white

CLIP = Preprocessing.from_config({"image_processor_type": "CLIPImageProcessor"})
TINY = photo(13, 9)


@st.composite
def any_png(draw):
    """Samples of any colour type and depth, with or without transparency."""
    colour_type = draw(st.sampled_from([0, 2, 3, 4, 6]))
    depth = draw(st.sampled_from({0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8]}.get(colour_type, [8, 16])))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    samples = generator.integers(0, 2**depth, (height, width, CHANNELS[colour_type]))
    if draw(st.booleans()):
        samples[-1] = 0
    palette = generator.bytes(3 * 2**depth) if colour_type == 3 else b""
    transparency = None
    if draw(st.booleans()):
        if colour_type == 3:
            transparency = generator.bytes(draw(st.integers(1, 2**depth)))
        elif colour_type in (0, 2):
            transparency = samples[0, 0].astype(">u2").tobytes()
    return {
        "samples": samples,
        "colour_type": colour_type,
        "depth": depth,
        "palette": palette,
        "transparency": transparency,
    }


@settings(max_examples=150)
@given(any_png())
def test_every_kind_of_png_looks_as_on_white_paper(png):
    seen = read_image(png_bytes(**png)).pixels
    assert seen.dtype == np.uint8
    # 16 bits are cut to their high byte, once for colour and once for opacity.
    assert np.abs(seen - seen_over_white(**png)).max() < (2.01 if png["depth"] == 16 else 1.01)


@settings(max_examples=100)
@given(any_png(), st.data())
def test_a_flipped_bit_in_a_png_is_never_shown(png, data):
    damaged = bytearray(png_bytes(**png))
    position = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[position // 8] ^= 1 << position % 8
    with pytest.raises(ImageError):
        read_image(bytes(damaged))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})],
)
def test_a_file_cut_anywhere_is_refused(kind, options):
    data = encoded(photo(40, 60), kind, **options)
    for length in [*range(0, len(data), 37), *range(len(data) - 9, len(data))]:
        with pytest.raises(ImageError):
            read_image(data[:length])


@pytest.mark.parametrize("rows_kept", [0, 1, 5, 9])
def test_a_png_whose_data_end_early_is_refused_instead_of_shown_black(rows_kept):
    samples = np.full((10, 8, 3), 200)
    rows = packed_rows(samples[:rows_kept], 8)
    with pytest.raises(ImageUnreadable):
        read_image(png_bytes(samples, colour_type=2, depth=8, rows=rows))


def test_a_png_with_a_truly_black_last_row_is_read():
    samples = np.full((10, 8, 3), 200)
    samples[-1] = 0
    assert (read_image(png_bytes(samples, colour_type=2, depth=8)).pixels == samples).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(TINY, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    image = read_image(data)
    assert (image.pixels == expected).all()
    assert (image.height, image.width) == expected.shape[:2]


def test_exif_in_motorola_order_is_read_and_nonsense_is_ignored():
    def with_exif(block: bytes) -> bytes:
        data = encoded(TINY, "JPEG")
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block + data[2:]

    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    assert read_image(with_exif(b"MM\0*\0\0\0\x08\0\x01" + entry)).width == TINY.height
    for nonsense in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"XX*\0\0\0\0\x08", b"II*\0\x08\0\0\0\xff\xff\x12\x01"):
        assert read_image(with_exif(nonsense)).width == TINY.width


def test_cmyk_jpeg_as_adobe_writes_it():
    cmyk = TINY.convert("CMYK")
    seen = read_image(encoded(cmyk, "JPEG", quality=100)).pixels.astype(int)
    assert np.abs(seen - np.asarray(cmyk.convert("RGB"))).mean() < 3


def test_ycck_jpeg():
    inks = np.asarray(photo(32, 32)).copy()
    black = np.asarray(photo(32, 32, seed=1).convert("L")) // 2
    cmyk = Image.merge("CMYK", [*Image.fromarray(inks).split(), Image.fromarray(black)])
    expected = np.asarray(cmyk.convert("RGB")).astype(int)
    # Pillow writes a four-channel JPEG inverted and untransformed; the Adobe segment then says that it is YCCK.
    luma = 255 - np.asarray(Image.fromarray(inks).convert("YCbCr"))
    stored = Image.merge("CMYK", [*(Image.fromarray(luma[..., index]) for index in range(3)), Image.fromarray(black)])
    data = bytearray(encoded(stored, "JPEG", quality=100))
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0
    data[adobe + 11] = 2
    seen = read_image(bytes(data)).pixels.astype(int)
    assert np.abs(seen - expected).mean() < 3


def test_grey_jpeg_and_rgb_webp_with_alpha():
    grey = read_image(encoded(TINY.convert("L"), "JPEG", quality=100)).pixels
    assert (grey[..., 0] == grey[..., 1]).all()
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    clear.paste((10, 20, 30, 255), (0, 0, 4, 8))
    seen = read_image(encoded(clear, "WEBP", lossless=True, exact=True)).pixels
    assert (seen[:, :4] == (10, 20, 30)).all()
    assert (seen[:, 4:] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_shown(kind):
    frames = [Image.new("RGB", (6, 5), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **lossless)
    assert (read_image(data).pixels == (200, 0, 0)).all()


def test_metadata_bombs_and_broken_animations_never_reach_the_decoder():
    bomb = zlib.compress(bytes(80 * 2**20), 9)
    samples = np.full((4, 4, 3), 7)
    extra = chunk(b"iCCP", b"bomb\0\0" + bomb) + chunk(b"zTXt", b"bomb\0\0" + bomb) + chunk(b"acTL", bytes(8)) * 2
    assert (read_image(png_bytes(samples, colour_type=2, depth=8, extra=extra)).pixels == 7).all()


def test_interlaced_png():
    # Adam7 of a 2 x 2 picture: pass 1 holds (0,0), pass 6 holds (0,1), pass 7 the second row.
    rows = b"\0\x01" + b"\0\x02" + b"\0\x03\x04"
    header = struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 1)

    def with_rows(data: bytes) -> bytes:
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")

    assert read_image(with_rows(rows)).pixels[..., 0].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ImageUnreadable):
        read_image(with_rows(rows[:-1]))


@settings(max_examples=100)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\0\0\0WEBPVP8 "])
)
def test_noise_is_refused_with_an_image_error(noise, magic):
    with pytest.raises(ImageError):
        read_image(magic + noise)


@settings(max_examples=80)
@given(st.data(), st.sampled_from(["JPEG", "WEBP"]))
def test_damage_gives_pixels_or_an_image_error_and_nothing_else(data, kind):
    damaged = bytearray(encoded(photo(24, 24), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert read_image(bytes(damaged)).pixels.dtype == np.uint8


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_are_refused_by_content(kind):
    with pytest.raises(ImageFormatUnsupported, match="send JPEG, PNG or WebP"):
        read_image(encoded(TINY, kind))


def test_a_large_jpeg_is_drafted_and_stays_close():
    data = encoded(photo(603, 801), "JPEG", quality=95)
    whole = read_image(data)
    drafted = read_image(data, target=(75, 100))
    assert not whole.drafted
    assert drafted.drafted
    assert drafted.pixels.shape == (151, 201, 3)
    assert (drafted.height, drafted.width) == (603, 801)
    assert not read_image(data, target=(302, 400)).drafted
    assert read_image(data, target=(301, 400)).drafted
    from_draft = prepare(data, CLIP)
    assert from_draft.drafted
    from_whole = prepare(encoded(Image.fromarray(whole.pixels), "PNG"), CLIP)
    assert not from_whole.drafted
    assert np.abs(from_draft.pixels.astype(int) - from_whole.pixels).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_drafted_jpeg_stays_in_place_whatever_its_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    # 451 / 2 is no whole number: the last drafted row lies half outside of the picture, the last column does not.
    data = encoded(photo(451, 450), "JPEG", quality=95, exif=exif)
    exact = Preprocessing.from_config({"image_processor_type": "ViTImageProcessor", "size": 113})
    drafted = prepare(data, exact)
    assert drafted.drafted
    whole = Image.fromarray(read_image(data).pixels).resize((113, 113), Image.Resampling.BILINEAR)
    assert np.abs(drafted.pixels.transpose(1, 2, 0).astype(int) - np.asarray(whole)).mean() < 0.5


def test_a_line_of_pixels_costs_no_more_than_its_crop():
    line = Image.fromarray(np.arange(50_000, dtype=np.uint32).view(np.uint8).reshape(1, 50_000, 4)[..., :3].copy())
    prepared = prepare(encoded(line, "PNG"), CLIP)
    assert (prepared.width, prepared.height) == (50_000, 1)
    middle = np.asarray(line)[0, 24_998:25_002].astype(int)
    low, high = middle.min(axis=0), middle.max(axis=0)
    assert (prepared.pixels >= low[:, None, None] - 20).all()
    assert (prepared.pixels <= high[:, None, None] + 20).all()


def test_thumbnails_are_small_deterministic_and_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(600, 900), "JPEG", exif=exif)
    small = thumbnail(data)
    assert small == thumbnail(data)
    with Image.open(io.BytesIO(small)) as opened:
        assert opened.format == "JPEG"
        assert opened.size == (85, 128)
        assert not opened.getexif()
    from_pixels = thumbnail(read_image(data).pixels)
    with Image.open(io.BytesIO(from_pixels)) as opened:
        assert opened.size == (85, 128)
    tiny = thumbnail(encoded(TINY, "PNG"), size_px=128)
    with Image.open(io.BytesIO(tiny)) as opened:
        assert opened.size == TINY.size
    with Image.open(io.BytesIO(thumbnail(encoded(photo(1, 900), "PNG")))) as opened:
        assert opened.size == (128, 1)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("height", "width"), [(60, 90), (200, 300), (1203, 1801), (40, 1000)])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("thumbnail_px", [64, 1024])
def test_one_decoding_serves_pixels_and_thumbnail(orientation, height, width, image_format, thumbnail_px):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(height, width), image_format, exif=exif)
    prepared, small = prepare_with_thumbnail(data, CLIP, thumbnail_px=thumbnail_px)
    alone = prepare(data, CLIP)
    assert np.array_equal(prepared.pixels, alone.pixels)
    assert (prepared.width, prepared.height, prepared.drafted) == (alone.width, alone.height, alone.drafted)
    with Image.open(io.BytesIO(small)) as shared, Image.open(io.BytesIO(thumbnail(data, size_px=thumbnail_px))) as own:
        assert shared.size == own.size
        difference = np.abs(np.asarray(shared).astype(int) - np.asarray(own).astype(int))
    assert difference.mean() < 2
    if prepared.drafted and thumbnail_px == 1024:
        assert small == thumbnail(data, size_px=thumbnail_px)  # What was decoded for 224 pixels shows too little.


def test_an_overlay_warms_the_hot_corner_only():
    image = np.full((40, 60, 3), 100, np.uint8)
    heat = np.zeros((4, 6), np.float32)
    heat[0, 0] = 3
    with Image.open(io.BytesIO(overlay(image, heat))) as opened:
        shown = np.asarray(opened).astype(int)
    assert shown.shape == (40, 60, 3)
    assert shown[0, 0, 0] > 150
    assert shown[0, 0, 2] < 60
    assert (shown[20:, 30:] == 100).all()
    with Image.open(io.BytesIO(overlay(image, np.zeros((4, 6), np.float32)))) as opened:
        assert (np.asarray(opened) == 100).all()


def test_an_image_is_named_by_its_bytes():
    assert image_sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_prepared_pixels_are_channels_first_and_padded_where_too_small():
    preprocessing = Preprocessing.from_config(
        {"image_processor_type": "CLIPImageProcessor", "do_resize": False, "crop_size": 15}
    )
    prepared = prepare(encoded(TINY, "PNG"), preprocessing)
    assert preprocessing.size == ExactSize(height=15, width=15)
    assert prepared.pixels.shape == (3, 15, 15)
    assert (prepared.pixels[:, 1:14, 3:12] == np.asarray(TINY).transpose(2, 0, 1)).all()
    assert prepared.pixels.sum() == np.asarray(TINY).astype(int).sum()
