"""VQA v2: open questions about COCO photographs, ten answers each. The official layout:

data_dir/v2_OpenEnded_mscoco_train2014_questions.json   ..._val2014_... ..._test2015_... ..._test-dev2015_...
data_dir/v2_mscoco_train2014_annotations.json           ..._val2014_...
data_dir/train2014/COCO_train2014_000000458752.jpg      val2014/ test2015/, or train2017/ and val2017/, or `image_dirs`

The files may be gzipped, and may lie in Questions/ and Annotations/. See `vqa_files` for their content.
"""

from .vqa_files import COCOQuestions


class VQAv2(COCOQuestions):
    """Answers are as written, in lower case; test and test_dev, a part of it, have none."""
