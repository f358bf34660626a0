"""iVQA: questions about clips of instruction videos, each answered by five people. The official layout:

data_dir/train.csv val.csv test.csv
data_dir/video/<video_id>.mp4           or <video_id>_<start>_<end>.mp4 where the file gives the seconds of the clip

video_id,question,answer1,answer2,answer3,answer4,answer5
"""

import csv
from collections.abc import Iterator

from .official_files import BadRowError, field
from .schema import Record, make_sample
from .video_clips import VideoBuilder

ANSWERS = [f"answer{number}" for number in range(1, 6)]


class IVQA(VideoBuilder):
    """The answers are all five, repeats kept, which the metric needs."""

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        with open(file, encoding="utf-8", errors="strict", newline="") as lines:
            records = csv.DictReader(lines, strict=True)
            row = 0
            while True:
                row += 1
                try:
                    record = next(records, None)
                    if record is None:
                        return
                    name = field(record, "video_id", str).strip()
                    clip = (
                        [f"{name}_{record['start']}_{record['end']}"]
                        if record.get("start") and record.get("end")
                        else []
                    )
                    sample = make_sample(
                        id=f"ivqa/{split}/{row}",  # the files number nothing
                        question=field(record, "question", str).strip(),
                        answers=[field(record, answer, str).strip() for answer in ANSWERS],
                    )
                    image_id = f"howto100m/{clip[0] if clip else name}"
                    yield Record(file, row, image_id, [*clip, name], sample)
                except csv.Error as error:
                    yield BadRowError(file, row, f"not CSV ({error})")
                except UnicodeDecodeError as error:
                    raise ValueError(f"{file}, after row {row - 1}: not UTF-8 ({error})") from error
                except ValueError as error:
                    yield BadRowError(file, row, str(error))
