"""What a process of the service may need: the sum that deploy/README.md shows, with the bounds of given settings."""

from service.settings import Settings

MIB = 2**20
_DECODER_BASE_BYTES = 60 * MIB
# A PNG with alpha, which is never drafted: as it lies in the file, in colour alone, and turned upright. Measured: 16.2.
_DECODED_PIXEL_BYTES = 17
_PREPARED_IMAGE_BYTES = 448 * 448 * 3
_INDEX_IMAGES = 1_000_000
# By which its row is found, and its norm; and, by FAISS, a residual of width 1,024 and an embedding of 768: for each an
# eighth of a byte a number, and the number of its row.
_INDEX_IMAGE_BYTES = 32 + (1024 // 8 + 8) + (768 // 8 + 8)


def need_bytes(settings: Settings, *, base_bytes: int) -> int:
    """The most that settings allow, beside `base_bytes` for libraries, encoder and SAE; page cache not counted."""
    decoder = _DECODER_BASE_BYTES + _DECODED_PIXEL_BYTES * settings.image.limit_pixels + settings.image.limit_bytes
    # An accepted image is there twice: in its message, and in the memory that it shares with a decoder. Uploads in
    # chunks are bounded by themselves until they are whole.
    return (
        base_bytes
        + settings.queue.decode_worker_count * decoder
        + 3 * settings.queue.image_bytes
        + settings.queue.images * _PREPARED_IMAGE_BYTES
        + settings.cache.limit_bytes
        + _INDEX_IMAGES * _INDEX_IMAGE_BYTES
    )
