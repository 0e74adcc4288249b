"""Images of a run's input, for coding programs: each takes them in a way of its own, or not at all."""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mesh.providers.base import ProviderFailure, RunContext, as_failure
from mesh.providers.conversation import Block, blocks_of

VISION = {"name": "vision", "type": "resource"}
_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/gif": ".gif", "image/webp": ".webp"}


def images_of(run: RunContext) -> list[Block]:
    """The images of the input's messages, in order. Their places in the prompt say ``[image]``.

    Raises:
        ProviderFailure: ``validation_error``; a block that is neither text nor an image.
    """
    listed = run.input.get("messages") if isinstance(run.input, Mapping) else None
    found: list[Block] = []
    with as_failure():
        for message in listed if isinstance(listed, list) else []:
            if isinstance(message, Mapping) and isinstance(message.get("content"), list):
                found += (block for block in blocks_of(message["content"]) if block["type"] == "image")
    return found


def refuse_images(run: RunContext, who: str) -> None:
    """For a program that takes none.

    Raises:
        ProviderFailure: ``validation_error``; the input has one.
    """
    if images_of(run):
        raise ProviderFailure(f"{who} takes no images", code="validation_error")


def data_of(images: list[Block], who: str) -> list[tuple[str, str]]:
    """(media type, base64) of each image, for a program that fetches none.

    Raises:
        ProviderFailure: ``validation_error``; an image that is an address.
    """
    if any("url" in image for image in images):
        raise ProviderFailure(f"{who} takes images as data, not by their url", code="validation_error")
    return [(image["media_type"], image["data"]) for image in images]


@contextmanager
def image_files(images: list[Block], who: str) -> Iterator[list[str]]:
    """The images as files, for a program that reads files; they are gone afterwards.

    Raises:
        ProviderFailure: ``validation_error``; an address, an unknown kind, or what is no base64.
    """
    given = data_of(images, who)
    if not given:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="mesh-images-") as folder:
        paths = []
        for n, (media_type, data) in enumerate(given):
            suffix = _SUFFIXES.get(media_type)
            if suffix is None:
                kinds = ", ".join(_SUFFIXES)
                raise ProviderFailure(f"an image of type {media_type!r:.40} (known: {kinds})",
                                      code="validation_error")
            try:
                content = base64.b64decode(data, validate=True)
            except (binascii.Error, ValueError) as exc:
                raise ProviderFailure(f"an image is no base64: {exc}", code="validation_error") from exc
            path = Path(folder, f"image-{n}{suffix}")
            path.write_bytes(content)
            paths.append(str(path))
        yield paths


__all__ = ["VISION", "data_of", "image_files", "images_of", "refuse_images"]
