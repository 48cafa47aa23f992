"""The building blocks of Phosphene's pages: escaped text, bars, thumbnails, the frame around them.

A page is one file that loads nothing: style within, images as data URIs, no script (its Content-Security-Policy says
so to the browser too). Every text from outside passes `text`, which is the only way into a page.
"""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Iterable, Sequence
from importlib.resources import files

from phosphene.client.page_maps import is_whole, mapped_thumbnail
from phosphene.client.words import caption_of, number, percent, plain
from phosphene.v1.neurons_pb2 import ActivationHistogram
from phosphene.v1.values_pb2 import CorpusImage, Exemplar, ImageMatch, PatchMap

__all__ = [
    "bar",
    "data_uri",
    "exemplar_strip",
    "facts",
    "frame",
    "histogram_bars",
    "match_strip",
    "section",
    "text",
]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def text(value: str) -> str:
    """Return a text as it may stand anywhere in a page, in quoted attributes too."""
    return html.escape(plain(value), quote=True)


def data_uri(image: bytes) -> str | None:
    """Return a JPEG, PNG or WebP file as a data URI, None for anything else; the type is told by content."""
    if image.startswith(b"\xff\xd8\xff"):
        kind = "jpeg"
    elif image.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        kind = "webp"
    else:
        return None
    return f"data:image/{kind};base64,{b64encode(image).decode('ascii')}"


def frame(title: str, body: str, footer: Sequence[tuple[str, str]], *, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: its heading, unescaped.
        body: HTML.
        footer: pairs of a title and a text, unescaped: what the page was made from.
        style: further CSS, such as `photo_style`.
    """
    sheet = files("phosphene.client").joinpath("page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)} · Phosphene</title>
<style>
{sheet}{style}</style>
</head>
<body>
<header>
<p class="mark">Phosphene</p>
<h1 dir="auto">{text(title)}</h1>
</header>
<main>
{body}
</main>
<footer>
{facts(footer)}
</footer>
</body>
</html>
"""


def section(title: str, lead: str, content: str) -> str:
    """Return a section with its heading and one sentence that says what it shows; `content` is HTML."""
    return f'<section>\n<h2>{text(title)}</h2>\n<p class="lead">{text(lead)}</p>\n{content}\n</section>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return pairs of a title and a text as a line of small print."""
    items = "".join(f"<div><dt>{text(title)}</dt><dd>{text(value)}</dd></div>" for title, value in pairs)
    return f'<dl class="facts">{items}</dl>'


def histogram_bars(histogram: ActivationHistogram) -> str:
    """Return how many images lie in each range of activation, a bar for each range."""
    most = max(histogram.counts, default=0)
    rows = "".join(
        f"<li><span>{number(lower)} to {number(upper)}</span>{bar(float(count), float(most), said=str(count))}</li>"
        for lower, upper, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False)
    )
    return f'<ol class="histogram">{rows}</ol>'


def bar(value: float, largest: float, *, said: str | None = None) -> str:
    """Return a horizontal bar of `value`, full at `largest`, with the figure (or what is said instead) behind it."""
    share = min(1.0, max(0.0, value / largest)) if largest > 0 else 0.0
    drawn = f'<span><i style="width:{100 * share:.1f}%"></i></span>'
    return f'<div class="bar">{drawn}<b>{text(said or number(value))}</b></div>'


def exemplar_strip(exemplars: Iterable[Exemplar]) -> str:
    """Return exemplars as thumbnails, the activation under each, what is said of the image as its title."""
    shots = "".join(
        _shot(
            exemplar.image,
            exemplar.patch_map if exemplar.HasField("patch_map") else None,
            figure=number(exemplar.activation),
            title=f"{caption_of(exemplar.image)} · activation {number(exemplar.activation)}, "
            f"stronger than {percent(exemplar.quantile)}",
        )
        for exemplar in exemplars
    )
    return f'<ul class="strip">{shots}</ul>' if shots else ""


def match_strip(matches: Iterable[ImageMatch], metric: str) -> str:
    """Return images that answer a query as thumbnails, with their scores and what is said of them."""
    shots = "".join(
        _shot(
            match.image,
            match.patch_map if match.HasField("patch_map") else None,
            figure=f"{match.score:.2f}",
            said=caption_of(match.image),
            title=f"{caption_of(match.image)} · {metric} {match.score:.3f}{_shared(match.shared_neuron_ids)}",
        )
        for match in matches
    )
    return f'<ul class="strip gallery">{shots}</ul>' if shots else ""


def _shot(image: CorpusImage, drawn: PatchMap | None, *, figure: str, title: str, said: str = "") -> str:
    source = data_uri(image.thumbnail)
    alt = text(caption_of(image))
    if source and drawn is not None and is_whole(drawn) and image.width and image.height:
        picture = mapped_thumbnail(source, alt, image, drawn)
    elif source:
        picture = f'<img src="{source}" alt="{alt}" loading="lazy">'
    else:
        picture, said = f'<div class="blank" dir="auto">{alt}</div>', ""
    under = f"<b>{text(figure)}</b> <bdi>{text(said)}</bdi>" if said else text(figure)
    kind = "shot told" if said else "shot"
    return f'<li class="{kind}" title="{text(title)}">{picture}<span>{under}</span></li>'


def _shared(neuron_ids: Sequence[int]) -> str:
    return f" · shares neurons {', '.join(str(neuron_id) for neuron_id in neuron_ids)}" if neuron_ids else ""
