"""Questions about video clips: a row's images are a few frames of its clip, in order (paper, section 3.1: 4 frames)."""

import dataclasses
import io
import os
from collections.abc import Sequence
from typing import Any, ClassVar

from ..processing.video_frames import frame_indices, read_frames
from .official_files import clip_path
from .schema import BuilderConfig, InstructionBuilder, Record

FRAME_ENDINGS = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass
class VideoConfig(BuilderConfig):
    """`BuilderConfig`, and what is taken of a clip."""

    num_frames: int = 4  # as in the paper, uniformly spaced; a shorter clip gives what it has


class VideoBuilder(InstructionBuilder):
    """Reads official files about clips. A record's `image` is the list of names that its clip may have.

    A clip is a video file or a folder of frames, looked for when its row is made: questions can be read without clips.
    Frames of a video file are decoded while building and stored as JPEG, so that the rows need no video library and no
    clip any more; frames of a folder are picked by the order of their names. A stream decodes each clip as it comes.
    """

    BUILDER_CONFIG_CLASS = VideoConfig
    BUILDER_CONFIGS: ClassVar = [VideoConfig(name="default")]
    FOLDERS: ClassVar[tuple[str, ...]] = ("video", "videos")  # in data_dir
    several_images = True

    def image_folders(self, split: str) -> list[str]:
        return self.config.folders(*self.FOLDERS)

    def images_of(self, record: Record) -> Sequence[str | bytes]:
        clip = clip_path(self.image_folders(""), record.image)
        if os.path.isdir(clip):
            names = sorted(name for name in os.listdir(clip) if name.lower().endswith(FRAME_ENDINGS))
            if not names:
                raise ValueError(f"folder {clip} has no frames ({', '.join(FRAME_ENDINGS)})")
            return [os.path.join(clip, names[i]) for i in frame_indices(len(names), self.config.num_frames)]
        return [as_jpeg(frame) for frame in read_frames(clip, self.config.num_frames, "the video")]


def as_jpeg(frame: Any) -> bytes:
    """A PIL image as JPEG bytes."""
    with io.BytesIO() as file:
        frame.save(file, format="JPEG", quality=95)
        return file.getvalue()
