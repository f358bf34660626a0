"""Pick a few frames of a video; each then is one image of its prompt."""

import os
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image

# Files that hold their pictures. FFmpeg also knows playlists, which make it open other files and addresses.
CONTAINERS = "avi,asf,flv,gif,matroska,mov,mpeg,mpegts,ogg"


def frame_indices(total: int, num_frames: int) -> list[int]:
    """Uniformly spaced frame numbers: frame i of n is number floor(i * total / n).

    This is the paper's uniform sampling (LAVIS: `arange(0, total, total / n)`): the clip is cut into n equal parts and
    the first frame of each is taken. A clip of fewer than n frames gives all of them, once.
    """
    count = min(total, num_frames)
    return [index * total // count for index in range(count)]


def is_video_source(value: Any) -> bool:
    """Whether `value` is one video: a path, bytes, a (frames, ...) array, or a list of PIL images or arrays."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim == 4
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(_is_frame(frame) for frame in value)
    return isinstance(value, (str, bytes, os.PathLike))


def read_frames(video: Any, num_frames: int | None, name: str) -> list[Any]:
    """The frames that stand for a video.

    Args:
        video: see `is_video_source`.
        num_frames: how many to pick, by `frame_indices`; None keeps every frame.
        name: what an error calls the video, such as `"video 0 of sample 3"`.

    Returns:
        Images in time order: RGB PIL images of a file, or entries of the array or list.

    Raises:
        ImportError: the video is a file and PyAV is not installed.
        ValueError: the video holds no frames, is cut off, cannot be decoded, or its frames exceed PIL's pixel limit.
    """
    if isinstance(video, (str, bytes, os.PathLike)):
        return _decode(video, num_frames, name)
    frames = list(video)
    if not frames:
        raise ValueError(f"{name} has no frames")
    if num_frames is None:
        return frames
    return [frames[index] for index in frame_indices(len(frames), num_frames)]


def _is_frame(value: Any) -> bool:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim in (2, 3)
    return isinstance(value, Image.Image)


def _decode(source: str | bytes | os.PathLike, num_frames: int | None, name: str) -> list[Image.Image]:
    try:
        import av
    except ImportError as error:
        raise ImportError("Reading video files needs PyAV: pip install av") from error

    described = name if isinstance(source, bytes) else f"{name} ({os.fspath(source)})"
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise ValueError(f"{described} does not exist")
    try:
        total = _declared_frames(av, source)
        found, frames = _pick(av, source, total, num_frames)
        if found != total:  # the header lied, or some packets hold no picture
            found, frames = _pick(av, source, found, num_frames)
    except (av.FFmpegError, Image.DecompressionBombError, LookupError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{described} cannot be read: {reason}") from error
    if not frames:
        raise ValueError(f"{described} has no frames")
    return frames


def _open(av: Any, source: str | bytes | os.PathLike) -> Any:
    file = BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
    return av.open(file, metadata_errors="ignore", container_options={"format_whitelist": CONTAINERS})


def _video_stream(container: Any) -> Any:
    """The stream that a player would show; cover pictures and second angles are passed over."""
    stream = container.streams.best("video")
    if stream is None:
        raise LookupError("it has no video stream")
    _refuse_bomb(stream.codec_context)
    return stream


def _refuse_bomb(size: Any) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size.width * size.height > limit:
        raise Image.DecompressionBombError(
            f"frames of {size.width} x {size.height} pixels exceed PIL.Image.MAX_IMAGE_PIXELS = {limit}"
        )


def _declared_frames(av: Any, source: str | bytes | os.PathLike) -> int:
    with _open(av, source) as container:
        stream = _video_stream(container)
        if stream.frames:
            return stream.frames
        return sum(1 for packet in container.demux(stream) if packet.size)  # Matroska does not declare a count


def _pick(
    av: Any, source: str | bytes | os.PathLike, total: int, num_frames: int | None
) -> tuple[int, list[Image.Image]]:
    """Decode once: (frames that there are, those that were asked for if there are `total`)."""
    wanted = set(range(total) if num_frames is None else frame_indices(total, num_frames)) if total else set()
    found, frames = 0, []
    with _open(av, source) as container:
        stream = _video_stream(container)
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if found in wanted:
                _refuse_bomb(frame)  # frames need not have the size that the header declares
                frames.append(frame.to_image())
            found += 1
        _refuse_cut_off(av, container, stream, max(_matroska_end(source), _indexed_end(stream)), found)
    return found, frames


def _refuse_cut_off(av: Any, container: Any, stream: Any, end: int, found: int) -> None:
    """Raise if the last bytes of a file are missing: FFmpeg gives what is left as if it were the whole video.

    Fewer frames than declared mean nothing as long as all bytes are there: headers lie.

    Args:
        end: where the file should end, in bytes.
    """
    seconds = (container.duration or 0) / av.time_base
    expected = stream.frames or round(seconds * (stream.average_rate or 0))
    if container.size < end and (not expected or found < expected):
        raise EOFError(f"it is cut off, found {found} of {expected or 'an unknown number of'} frames")


def _indexed_end(stream: Any) -> int:
    """Where the last packet of a decoded stream should end, in bytes; 0 if its format (or an old PyAV) does not say."""
    index = getattr(stream, "index_entries", ())
    return index[-1].pos + index[-1].size if len(index) else 0


def _matroska_end(source: str | bytes | os.PathLike) -> int:
    """Where a Matroska or WebM file should end, in bytes; 0 if it does not say, as live recordings."""
    end = 0
    with BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # the head, and the segment that is all the rest
            file.seek(end)
            if file.read(4) != name:
                return 0
            first = file.read(1)
            more = 8 - first[0].bit_length()  # bytes of the size, told by the place of the first bit that is set
            unknown = (1 << 7 * (more + 1)) - 1  # every bit of the size
            size = int.from_bytes(first + file.read(more)) & unknown
            if size == unknown:
                return 0
            end = file.tell() + size
    return end
