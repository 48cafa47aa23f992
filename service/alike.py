"""Images of a corpus like another image, by the similarity that was asked for; knows no protobuf.

Reads the index, so it belongs in a worker thread.
"""

from __future__ import annotations

from typing import assert_never

from index.values import CodeMetric
from service.corpus_reader import CorpusReader
from service.explain import LiveImage, StoredImage
from service.lookups import code_search, images_like, images_near
from service.queries import CodesAlike, ImageSearch, ResidualsAlike, Similarity
from service.values import ImageList, ImageMetric

__all__ = ["images_alike"]

_CODE_METRICS = {
    CodeMetric.COSINE: ImageMetric.CODE_COSINE,
    CodeMetric.INNER_PRODUCT: ImageMetric.CODE_INNER_PRODUCT,
}


def images_alike(
    reader: CorpusReader, looked_at: LiveImage | StoredImage, search: ImageSearch, similarity: Similarity
) -> ImageList:
    """The images of the corpus most like one, best first, without copies of itself.

    Args:
        reader: the index.
        looked_at: what is known of the image.
        search: how many, and whether with thumbnails.
        similarity: how images are compared.
    """
    match looked_at:
        case LiveImage(coded=coded):
            sha = coded.sha256
        case StoredImage(row=row):
            sha = reader.image(row).sha256
        case _:
            assert_never(looked_at)
    match similarity:
        case CodesAlike() as alike:
            code = looked_at.coded.row.code if isinstance(looked_at, LiveImage) else reader.code(looked_at.row)
            images = images_like(
                reader,
                code,
                search.count,
                own_sha256=sha,
                with_thumbnails=search.pictures.thumbnails,
                alike=alike,
            )
            how = code_search(reader, alike)
            metric = _CODE_METRICS[alike.metric]
            return ImageList(
                images=images,
                metric=metric,
                code_search=how,
                recall=how.recall,
                engine=how.engine,
                encoder_engine=looked_at.engine,
            )
        case ResidualsAlike():
            residual = (
                looked_at.coded.row.residual if isinstance(looked_at, LiveImage) else reader.residual(looked_at.row)
            )
            assert residual is not None, "the engine was asked for residuals"
            images = images_near(
                reader,
                residual,
                search.count,
                own_sha256=sha,
                with_thumbnails=search.pictures.thumbnails,
            )
            return ImageList(
                images=images,
                metric=ImageMetric.RESIDUAL_COSINE,
                recall=reader.residual_recall,
                encoder_engine=looked_at.engine,
            )
        case _:
            assert_never(similarity)
