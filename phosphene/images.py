"""Image bytes to pixels: decoding, orientation, colour, the encoder's resize and crop; thumbnails and overlays out.

The only user of Pillow. Imports no torch and knows nothing of encoders beyond their preprocessing; pixels stay uint8
and are normalised on the device. Limits and metadata are read in `image_headers` before a decoder sees a byte.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from phosphene.errors import ImageUnreadable
from phosphene.framing import crop_span, resized_size
from phosphene.image_headers import ImageHeader, ImageLimits, JpegHeader, PngHeader, WebpHeader, read_header
from phosphene.preprocessing import ExactSize, Preprocessing, ShortestEdge

__all__ = [
    "DecodedImage",
    "ExactSize",
    "ImageLimits",
    "PreparedImage",
    "Preprocessing",
    "ShortestEdge",
    "image_sha256",
    "overlay",
    "prepare",
    "prepare_with_thumbnail",
    "read_image",
    "thumbnail",
]

Format = Literal["JPEG", "PNG", "WebP"]
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEFAULT_LIMITS = ImageLimits()
# How many times the area of the crop a resized image may have before only the crop's part of it is made.
_EXCESS_LIMIT = 64
_THUMBNAIL_QUALITY = 80
_Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedImage:
    """An upright RGB image."""

    pixels: UInt8[np.ndarray, "height width 3"]
    """Smaller than `height` x `width` where the decoder halved it (`drafted`)."""
    width: int
    """Of the whole image, upright."""
    height: int
    """Of the whole image, upright."""
    format: Format
    drafted: bool
    """Whether the JPEG decoder left out detail that the target size cannot show."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImage:
    """Pixels as the encoder wants them, not yet normalised."""

    pixels: UInt8[np.ndarray, "3 height width"]
    width: int
    """Of the image before resize and crop, upright."""
    height: int
    """Of the image before resize and crop, upright."""
    format: Format
    drafted: bool


def prepare(data: bytes, preprocessing: Preprocessing, limits: ImageLimits = _DEFAULT_LIMITS) -> PreparedImage:
    """Decode, resize and crop one image.

    Equal to the Pillow processors of transformers wherever the image was not drafted; where it is more than 64 times
    longer than wide, up to rounding.

    Args:
        data: a JPEG, PNG or WebP file.
        preprocessing: what the encoder asks for.
        limits: what the image may cost.

    Raises:
        ImageError: see `read_image`.
    """
    return _prepare(read_header(data, limits), preprocessing)[0]


def prepare_with_thumbnail(
    data: bytes, preprocessing: Preprocessing, *, thumbnail_px: int, limits: ImageLimits = _DEFAULT_LIMITS
) -> tuple[PreparedImage, bytes]:
    """Prepare an image as `prepare` does, and make a thumbnail of what was decoded for it: one decoding for both.

    Where the decoder left out detail that the thumbnail can show, the thumbnail is made as `thumbnail` makes it.

    Raises:
        ImageError: see `read_image`.
    """
    prepared, (picture, box) = _prepare(read_header(data, limits), preprocessing)
    size = _fitting_size(prepared.height, prepared.width, thumbnail_px)
    if prepared.drafted and (picture.width < size.width or picture.height < size.height):
        return prepared, thumbnail(data, size_px=thumbnail_px, limits=limits)
    return prepared, _thumbnail(picture, box, size)


def read_image(
    data: bytes, *, limits: ImageLimits = _DEFAULT_LIMITS, target: tuple[int, int] | None = None
) -> DecodedImage:
    """Decode one image to upright RGB: 16 bits scaled to 8, alpha over white, the first frame of an animation.

    Args:
        data: a JPEG, PNG or WebP file; told by content.
        limits: what the image may cost; checked before decoding.
        target: (height, width) that is wanted in the end; a JPEG at least twice as large is decoded at 1/2, 1/4 or
            1/8 of its size, never below the target.

    Raises:
        ImageFormatUnsupported: neither JPEG, PNG nor WebP.
        ImageTooLarge: beyond a limit.
        ImageUnreadable: damaged or cut off.
    """
    header = read_header(data, limits)
    height, width = _upright_size(header)
    image, _ = _decode(header, None if target is None else ExactSize(height=target[0], width=target[1]))
    drafted = image.size != (width, height)
    return DecodedImage(
        pixels=np.asarray(image), width=width, height=height, format=_format_of(header), drafted=drafted
    )


def thumbnail(
    image: bytes | UInt8[np.ndarray, "height width 3"],
    *,
    size_px: int = 128,
    limits: ImageLimits = _DEFAULT_LIMITS,
) -> bytes:
    """Make a JPEG whose longer edge has at most `size_px` pixels; the same bytes for the same image and libraries.

    Raises:
        ImageError: see `read_image`.
    """
    if isinstance(image, bytes):
        header = read_header(image, limits)
        height, width = _upright_size(header)
        size = _fitting_size(height, width, size_px)
        picture, box = _decode(header, size)
    else:
        picture = Image.fromarray(np.ascontiguousarray(image))
        size = _fitting_size(picture.height, picture.width, size_px)
        box = (0.0, 0.0, float(picture.width), float(picture.height))
    return _thumbnail(picture, box, size)


def overlay(
    image: UInt8[np.ndarray, "height width 3"],
    heat: Float[np.ndarray, "rows columns"],
    *,
    strength: float = 0.65,
) -> bytes:
    """Lay a heat map over an image and return a PNG.

    Args:
        image: the picture that the heat belongs to.
        heat: one value per patch, row by row; values below 0 show nothing, the largest shows `strength`.
        strength: opacity of the hottest place, 0..1.
    """
    warmth = np.clip(heat.astype(np.float32), 0, None)
    warmth /= max(float(warmth.max()), 1e-30)
    smooth = Image.fromarray(warmth).resize((image.shape[1], image.shape[0]), Image.Resampling.BILINEAR)
    opacity = np.asarray(smooth)[..., None]
    # From orange to yellow as it gets hotter: light on dark pictures, and no colour that photographs are full of.
    colour = np.concatenate([np.full_like(opacity, 255), 80 + 160 * opacity, np.zeros_like(opacity)], axis=2)
    blended = image * (1 - strength * opacity) + colour * (strength * opacity)
    return _encoded(Image.fromarray(np.rint(blended).astype(np.uint8)), "PNG")


def image_sha256(data: bytes) -> str:
    """Name an image: the SHA-256 of its bytes as uploaded, in hex."""
    return hashlib.sha256(data).hexdigest()


def _prepare(header: ImageHeader, preprocessing: Preprocessing) -> tuple[PreparedImage, tuple[Image.Image, _Box]]:
    """Return also what was decoded; as `_decode`."""
    height, width = _upright_size(header)
    resized = resized_size(preprocessing.resize, height, width)
    image, box = _decode(header, resized if preprocessing.resize is not None else None)
    pixels = _resize_and_crop(image, box, resized, preprocessing)
    drafted = image.size != (width, height)
    prepared = PreparedImage(pixels=pixels, width=width, height=height, format=_format_of(header), drafted=drafted)
    return prepared, (image, box)


def _thumbnail(picture: Image.Image, box: _Box, size: ExactSize) -> bytes:
    small = picture.resize((size.width, size.height), Image.Resampling.BICUBIC, box)
    return _encoded(small, "JPEG", quality=_THUMBNAIL_QUALITY, subsampling="4:2:0", optimize=True)


def _decode(header: ImageHeader, target: ExactSize | None) -> tuple[Image.Image, _Box]:
    """Return an upright RGB picture and the box (left, top, right, bottom) in it that the whole image fills.

    The box is smaller than the picture where a drafted edge is not a whole number of pixels long.
    """
    try:
        picture = _open(header)
        stored = picture.size
        if stored != (header.width, header.height):
            raise ImageUnreadable(f"image says {header.width} x {header.height} and decodes as {stored}; save it anew")
        scale = _draft(picture, header, target)
        picture.load()
        rgb = _to_rgb(picture, header)
    except (ImageUnreadable, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds, down to struct.error and IndexError.
        raise ImageUnreadable(
            f"{_format_of(header)} does not decode ({error}); send the file again, whole, or save it anew"
        ) from error
    right_spare, bottom_spare = rgb.width - stored[0] / scale, rgb.height - stored[1] / scale
    if header.orientation != 1:
        rgb = rgb.transpose(_ORIENTATIONS[header.orientation])
    if header.orientation >= 5:
        right_spare, bottom_spare = bottom_spare, right_spare
    left = right_spare if header.orientation in (2, 3, 6, 7) else 0.0
    top = bottom_spare if header.orientation in (3, 4, 7, 8) else 0.0
    return rgb, (left, top, left + rgb.width - right_spare, top + rgb.height - bottom_spare)


def _open(header: ImageHeader) -> JpegImageFile | PngImageFile | WebPImageFile:
    # The plug-ins are called by name: Image.open would warn of large images and turn some JPEGs into MPO.
    stream = io.BytesIO(header.pixel_stream)
    match header:
        case JpegHeader():
            return JpegImageFile(stream)
        case PngHeader():
            return PngImageFile(stream)
        case WebpHeader():
            return WebPImageFile(stream)
        case _:
            assert_never(header)


def _draft(picture: Image.Image, header: ImageHeader, target: ExactSize | None) -> int:
    if target is None or not isinstance(header, JpegHeader):
        return 1
    height, width = (target.height, target.width) if header.orientation < 5 else (target.width, target.height)
    ratio = min(header.width // width, header.height // height)
    if ratio < 2:
        return 1
    # Twice the target is kept where there is that much: 1/255 closer to the whole picture for a few milliseconds.
    scale = 8 if ratio >= 16 else 4 if ratio >= 8 else 2
    picture.draft(None, (header.width // scale, header.height // scale))
    return scale


def _to_rgb(picture: Image.Image, header: ImageHeader) -> Image.Image:
    match header:
        case PngHeader():
            return _png_to_rgb(picture, header)
        case WebpHeader() | JpegHeader() if picture.mode == "RGB":
            # Not through `convert`, which would copy it.
            return picture
        case WebpHeader() | JpegHeader():
            return _over_white(picture) if picture.mode == "RGBA" else picture.convert("RGB")
        case _:
            assert_never(header)


def _png_to_rgb(picture: Image.Image, header: PngHeader) -> Image.Image:
    # Where the data end early, the last row is still zero. Interlaced pictures fill in no such order.
    last_row = np.asarray(picture.crop((0, picture.height - 1, *picture.size)))
    if (header.interlaced or not last_row.any()) and not header.inflates_fully():
        raise ImageUnreadable("PNG is cut off inside its picture data; send the whole file")
    if header.colour_type == 3:
        return _palette_to_rgb(picture, header)
    if picture.mode in ("RGBA", "LA"):
        return _over_white(picture.convert("RGBA"))
    samples = np.asarray(picture)
    # The high byte, as Pillow and libpng reduce 16-bit RGB: 65535 becomes 255, and 257 * k becomes k.
    samples = (samples >> 8).astype(np.uint8) if picture.mode.startswith("I") else samples.astype(np.uint8)
    if picture.mode == "1":
        samples *= 255
    if header.transparency is not None:
        is_clear = _equals_key(np.asarray(picture), samples, header)
        samples = np.where(is_clear if samples.ndim == 2 else is_clear[..., None], np.uint8(255), samples)
    return Image.fromarray(samples).convert("RGB")


def _equals_key(
    stored: Shaped[np.ndarray, "height width *channels"],
    samples: UInt8[np.ndarray, "height width *channels"],
    header: PngHeader,
) -> Bool[np.ndarray, "height width"]:
    """Tell which pixels have the colour that a tRNS chunk makes transparent."""
    key = np.frombuffer((header.transparency or b"").ljust(6, b"\0")[:6], ">u2").astype(np.int64)
    if header.colour_type == 2:
        # Pillow keeps the high bytes of 16-bit RGB only, so there the key is compared by them.
        return np.asarray((samples == (key >> 8 if header.bit_depth == 16 else key)).all(axis=2))
    if header.bit_depth == 16:
        return np.asarray(stored == key[0])
    return np.asarray(samples == key[0] * 255 // (2**header.bit_depth - 1))


def _palette_to_rgb(picture: Image.Image, header: PngHeader) -> Image.Image:
    colours = np.zeros((256, 3), np.uint16)
    entries = np.frombuffer(header.palette[: len(header.palette) // 3 * 3][:768], np.uint8).reshape(-1, 3)
    colours[: len(entries)] = entries
    opacity = np.full((256, 1), 255, np.uint16)
    alphas = np.frombuffer((header.transparency or b"")[:256], np.uint8)
    opacity[: len(alphas), 0] = alphas
    table = ((colours * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    return Image.fromarray(table[np.asarray(picture)])


def _over_white(picture: Image.Image) -> Image.Image:
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    return white


def _upright_size(header: ImageHeader) -> tuple[int, int]:
    size = (header.height, header.width)
    return size if header.orientation < 5 else (size[1], size[0])


def _format_of(header: ImageHeader) -> Format:
    match header:
        case JpegHeader():
            return "JPEG"
        case PngHeader():
            return "PNG"
        case WebpHeader():
            return "WebP"
        case _:
            assert_never(header)


def _resize_and_crop(
    image: Image.Image, box: _Box, resized: ExactSize, preprocessing: Preprocessing
) -> UInt8[np.ndarray, "3 height width"]:
    size, crop = preprocessing.size, preprocessing.crop
    top, bottom, top_padding = crop_span(resized.height, crop.height if crop else None)
    left, right, left_padding = crop_span(resized.width, crop.width if crop else None)
    resample = Image.Resampling[preprocessing.resample.upper()]
    if resized.height * resized.width <= _EXCESS_LIMIT * size.height * size.width:
        picture = image.resize((resized.width, resized.height), resample, box)
        kept_rows, kept_columns = slice(top, bottom), slice(left, right)
    else:
        # Only what the crop keeps is resized: a 50,000 x 1 image would become 11 million pixels wide. The same up to
        # rounding, for which the first way is the rule: Pillow's order of passes depends on the size.
        row_step, column_step = (box[3] - box[1]) / resized.height, (box[2] - box[0]) / resized.width
        right_edge, bottom_edge = min(box[0] + right * column_step, box[2]), min(box[1] + bottom * row_step, box[3])
        source = (box[0] + left * column_step, box[1] + top * row_step, right_edge, bottom_edge)
        picture = image.resize((right - left, bottom - top), resample, source)
        kept_rows, kept_columns = slice(None), slice(None)
    pixels = np.zeros((3, size.height, size.width), np.uint8)
    rows = slice(top_padding, top_padding + bottom - top)
    columns = slice(left_padding, left_padding + right - left)
    # Plane by plane: to take pixels and put them into planes takes more than twice as long.
    for plane, colour in zip(pixels, "RGB", strict=True):
        values = np.frombuffer(picture.tobytes("raw", colour), np.uint8).reshape(picture.height, picture.width)
        plane[rows, columns] = values[kept_rows, kept_columns]
    return pixels


def _fitting_size(height: int, width: int, size_px: int) -> ExactSize:
    scale = min(1.0, size_px / max(height, width))
    return ExactSize(height=max(1, round(height * scale)), width=max(1, round(width * scale)))


def _encoded(picture: Image.Image, format_name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format_name, **options)
    return stream.getvalue()
