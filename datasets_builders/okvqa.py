"""OK-VQA: questions about COCO photographs whose answers take outside knowledge. The official layout:

data_dir/OpenEnded_mscoco_train2014_questions.json   OpenEnded_mscoco_val2014_questions.json
data_dir/mscoco_train2014_annotations.json           mscoco_val2014_annotations.json
data_dir/train2014/COCO_train2014_000000051606.jpg   val2014/, or train2017/ and val2017/, or `image_dirs`

See `vqa_files` for their content. An answer here has "raw_answer" too, as written; "answer" is its stemmed form, which
the official evaluation compares with. Five people answered, and each answer stands there twice.
"""

from .vqa_files import COCOQuestions


class OKVQA(COCOQuestions):
    """Answers are the stemmed ones. The tag question_type is the file's key of a field of knowledge, such as "four"."""
