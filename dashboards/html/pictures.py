"""Pictures small enough to embed in a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

REAL_IMAGES = "real images, from the training data"
"""Caption of a grid of real images."""
LARGEST_SIDE = 360
"""Largest side in pixels; larger pictures are scaled down."""


@dataclass(frozen=True)
class Picture:
    caption: str
    uri: str


def pictures(pngs: dict[str, bytes]) -> list[Picture]:
    """Embed PNGs by their captions; unreadable ones are left out."""
    uris = {caption: data_uri(png) for caption, png in pngs.items()}
    return [Picture(caption, uri) for caption, uri in uris.items() if uri]


def data_uri(png: bytes) -> str | None:
    """Encode a picture as the smaller of lossless and lossy WebP; None if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png)) as opened:
            image = opened.convert("RGB")
    except OSError:
        return None
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    encodings = []
    for settings in ({"lossless": True}, {"quality": 80}):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", **settings)
        encodings.append(buffer.getvalue())
    return f"data:image/webp;base64,{base64.b64encode(min(encodings, key=len)).decode()}"
