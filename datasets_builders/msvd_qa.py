"""MSVD-QA: questions made from the captions of YouTube clips. The official layout:

data_dir/train_qa.json val_qa.json test_qa.json youtube_mapping.txt
data_dir/video/vid1451.avi     or YouTubeClips/-4wsuPCjDBc_5_15.avi as MSVD itself names them, through the mapping

{"answer": "someone", "id": 37348, "question": "who opened the box that held an automatic weapon in a gun?",
 "video_id": 1451}
"""

import os
from collections.abc import Iterator

from .official_files import BadRowError, field, naming, read_json_list
from .schema import Record, make_sample
from .video_clips import VideoBuilder


class MSVDQA(VideoBuilder):
    """Answers are single words, one a question."""

    FOLDERS = ("video", "videos", "YouTubeClips")

    def extra_files(self, split: str) -> list[str]:
        path = os.path.join(self.config.data_dir, "youtube_mapping.txt")
        return [path] if os.path.isfile(path) else []

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        youtube = {}
        for path in self.extra_files(split):
            with naming(path, "text"), open(path, encoding="utf-8") as lines:
                youtube = {words[1]: words[0] for words in map(str.split, lines) if len(words) == 2}
        for row, record in enumerate(read_json_list(file), start=1):
            try:
                name = f"vid{field(record, 'video_id', int)}"
                names = [name, youtube[name]] if name in youtube else [name]
                sample = make_sample(
                    id=f"msvd_qa/{field(record, 'id', int)}",
                    question=field(record, "question", str),
                    answers=[field(record, "answer", str)],
                )
                yield Record(file, row, f"msvd/{name}", names, sample)
            except ValueError as error:
                yield BadRowError(file, row, str(error))
