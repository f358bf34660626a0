"""MSRVTT-QA: questions made from the captions of web clips. The official layout:

data_dir/train_qa.json val_qa.json test_qa.json
data_dir/video/video7010.mp4        or TrainValVideo/ and TestVideo/, as MSR-VTT's own archives name them

{"answer": "couch", "category_id": 14, "id": 158581, "question": "what are three people sitting on?", "video_id": 6513}
"""

from collections.abc import Iterator

from .official_files import BadRowError, field, read_json_list
from .schema import Record, make_sample
from .video_clips import VideoBuilder


class MSRVTTQA(VideoBuilder):
    """Answers are single words, one a question. Tag: category, MSR-VTT's number of the clip's kind."""

    FOLDERS = ("video", "videos", "TrainValVideo", "TestVideo")

    def read(self, split: str, file: str) -> Iterator[Record | BadRowError]:
        for row, record in enumerate(read_json_list(file), start=1):
            try:
                name = f"video{field(record, 'video_id', int)}"
                sample = make_sample(
                    id=f"msrvtt_qa/{field(record, 'id', int)}",
                    question=field(record, "question", str),
                    answers=[field(record, "answer", str)],
                    tags=[f"category={field(record, 'category_id', int)}"],
                )
                yield Record(file, row, f"msrvtt/{name}", [name], sample)
            except ValueError as error:
                yield BadRowError(file, row, str(error))
