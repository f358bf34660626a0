"""Open images that may be damaged or hostile, and say which one was."""

import base64
import binascii
import os
from collections.abc import Hashable
from io import BytesIO
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps

# Raster formats only: PIL would hand EPS to Ghostscript and plot WMF through the system.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


def is_image_source(value: Any) -> bool:
    """Whether `value` is one image: a PIL image, an array, a path, a URL, base64, bytes or `{"bytes", "path"}`."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim in (2, 3)
    if isinstance(value, dict):
        return "bytes" in value or "path" in value
    return isinstance(value, (Image.Image, str, bytes, os.PathLike))


def bytes_or_path(source: Any) -> Any:
    """The bytes of `{"bytes", "path"}`, its path if it has none, None without either; any other source itself."""
    if not isinstance(source, dict):
        return source
    return source["bytes"] if source.get("bytes") is not None else source.get("path")


def image_key(source: Any) -> Hashable:
    """What tells two images apart without opening them: the same path, bytes or object is the same image.

    The path in `{"bytes": ..., "path": ...}` does not count when there are bytes: archives repeat file names.
    """
    source = bytes_or_path(source)
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    return source if isinstance(source, (str, bytes)) else (type(source).__name__, id(source))


def open_image(source: Any, name: str) -> Any:
    """Decode an image.

    Args:
        source: see `is_image_source`. Arrays are handed on as they are.
        name: what an error calls the image, such as `"image 0 of sample 3"`.

    Returns:
        An RGB PIL image, upright by its EXIF tag when it came from a file; or the array, a grey one three times.

    Raises:
        ValueError: the image is missing, damaged, of no known format, has no pixels or more than
            `PIL.Image.MAX_IMAGE_PIXELS`, or is an array with a NaN or infinity.
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _array(source, name)
    described = _describe(source, name)
    if isinstance(source, dict) and bytes_or_path(source) is None:
        raise ValueError(f"{described} has neither bytes nor a path")
    if isinstance(source, Image.Image) and 0 in source.size:
        raise ValueError(f"{described} has no pixels: it is {source.width} x {source.height}")
    try:
        if isinstance(source, Image.Image):
            _refuse_bomb(source)
            source.load()  # a lazily opened file may be damaged: find out while its name is known
            return _rgb(source)
        image = Image.open(_file(source), formats=_known_formats())
        _refuse_bomb(image)
        return _rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise ValueError(f"{described} does not exist") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{described} is too large to be decoded safely: {error}") from error
    except Exception as error:  # decoders raise anything on damaged data; nothing is swallowed here
        reason = "is not an image" if isinstance(error, Image.UnidentifiedImageError) else f"cannot be read: {error}"
        raise ValueError(f"{described} {reason}") from error


def _array(array: np.ndarray | torch.Tensor, name: str) -> np.ndarray | torch.Tensor:
    """Three channels for (height, width) and for one channel; any other array itself."""
    library: Any = torch if isinstance(array, torch.Tensor) else np
    shape = tuple(array.shape)
    if 0 in shape:
        raise ValueError(f"{name} has no pixels: it is an array of shape {shape}")
    if not library.isfinite(array).all():
        raise ValueError(f"{name} is an array with a NaN or an infinity: pixels are finite numbers")
    if array.ndim == 2:
        array = array[None]  # (1, height, width)
    elif 3 in (shape[0], shape[-1]) or 1 not in (shape[0], shape[-1]):
        return array
    return library.concatenate([array] * 3, 0 if array.shape[0] == 1 else 2)


def _rgb(image: Image.Image) -> Image.Image:
    """Three channels, transparency dropped; an RGB image itself, not a copy."""
    # `convert` clips 16 bits to white. Mode I has 32, but the files that PIL opens in it have 16.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.getextrema()[1] > 255):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _describe(source: Any, name: str) -> str:
    if isinstance(source, dict):
        source = source.get("path")
    if isinstance(source, Image.Image):
        source = getattr(source, "filename", None)
    if isinstance(source, (str, os.PathLike)) and source:
        path = os.fspath(source)
        return f"{name} ({path if len(path) <= 200 else path[:200] + '...'})"
    return name


def _file(source: str | bytes | os.PathLike | dict) -> str | BytesIO:
    """A path or a stream for PIL; strings that are no file may be base64, as chat messages allow."""
    source = bytes_or_path(source)
    if isinstance(source, bytes):
        return BytesIO(source)
    source = os.fspath(source)
    if source.startswith(("http://", "https://")):
        return BytesIO(_download(source))
    if source.startswith("data:"):
        return BytesIO(base64.b64decode(source.partition(",")[2]))
    if len(source) > 200 and not os.path.isfile(source):
        try:
            return BytesIO(base64.b64decode(source, validate=True))
        except binascii.Error as error:
            raise FileNotFoundError(source) from error
    return source


def _download(url: str) -> bytes:
    request = Request(url, headers={"User-Agent": "instructblip"})  # some servers refuse Python's own name
    with urlopen(request, timeout=30) as response:
        return response.read()


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _refuse_bomb(image: Image.Image) -> None:
    """Size is read from the header, so nothing has been decoded yet."""
    limit = Image.MAX_IMAGE_PIXELS
    pixels = image.width * image.height
    if isinstance(image, ImageFile.ImageFile) and limit is not None and pixels > limit:
        raise Image.DecompressionBombError(f"{pixels} pixels exceed PIL.Image.MAX_IMAGE_PIXELS = {limit}")
