"""Every dataset that a task asks about, in its official layout, with a handful of questions.

Layouts are written by hand from the builders' docstrings. Words are those of the tiny tokenizers. Clips are folders of
frames, but for one that is a video file where PyAV is at hand.
"""

import csv
import importlib.util
import itertools
import json

import numpy as np
from PIL import Image

COLORS = ("red", "blue", "green", "yes", "no", "two", "cat", "dog", "three", "one")
QUESTIONS = ("what is the color of this cat ?", "is there a dog ?", "what is in the picture ?", "is the dog left ?")
CAPTIONS = ("a red cat", "a photo of a dog", "two dog in the picture", "the cat is left of a dog")


def write_official_data(root):
    """A folder for each dataset; returns `root`."""
    for name, write in WRITERS.items():
        folder = root / name
        folder.mkdir(parents=True)
        write(folder)
    return root


def dump(path, content, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in content) if lines else json.dumps(content))


_shades = itertools.count()


def draw(path, size=(36, 28)):
    """A picture of noise, no two alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(next(_shades)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_clip(path):
    """A clip of six frames: a video file, or without PyAV a folder of pictures."""
    if importlib.util.find_spec("av") is None:
        for number in range(6):
            draw(path.with_suffix("") / f"{number}.png")
        return
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for shade in range(0, 240, 40):
            container.mux(
                stream.encode(av.VideoFrame.from_image(Image.new("RGB", (32, 32), (shade, 200, 255 - shade))))
            )
        container.mux(stream.encode())


def ten(number):
    """Ten people's answers: six of one kind, three of another, one of a third."""
    first, second, third = (COLORS[(number + step) % len(COLORS)] for step in range(3))
    return [first] * 6 + [second] * 3 + [third]


def nocaps(folder):
    domains = ("in-domain", "near-domain", "out-domain", "near-domain")
    images, annotations = [], []
    for number, domain in enumerate(domains):
        name = f"{number:016x}"
        draw(folder / "validation" / f"{name}.jpg")
        images.append({"id": number, "file_name": f"{name}.jpg", "open_images_id": name, "domain": domain})
        for place in range(10):
            caption = CAPTIONS[(number + place) % 4]
            annotations.append({"image_id": number, "id": 10 * number + place, "caption": caption})
    dump(folder / "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})


def karpathy(folder, file, names, filepath=None):
    images = []
    for number, name in enumerate(names):
        draw(folder / name)
        sentences = [{"raw": CAPTIONS[(number + place) % 4]} for place in range(5)]
        entry = {"filename": name.rpartition("/")[2], "split": ("test", "test", "test", "val", "val")[number]}
        images.append({**({"filepath": filepath} if filepath else {}), **entry, "sentences": sentences})
    dump(folder / file, {"images": images})


def flickr30k(folder):
    karpathy(folder, "dataset_flickr30k.json", [f"flickr30k-images/{number}.jpg" for number in range(1, 6)])


def coco_caption(folder):
    names = [f"val2014/COCO_val2014_{number:012d}.jpg" for number in range(1, 6)]
    karpathy(folder, "dataset_coco.json", names, "val2014")


def gqa(folder):
    questions = {}
    for number in range(4):
        draw(folder / "images" / f"n{number % 2}.jpg")
        types = {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"}
        questions[f"2013{number}"] = {
            "imageId": f"n{number % 2}", "question": QUESTIONS[number], "answer": COLORS[number],
            "fullAnswer": f"It is {COLORS[number]}.", "isBalanced": True, "types": types,
        }  # fmt: skip
    dump(folder / "testdev_balanced_questions.json", questions)


def vsr(folder):
    lines = []
    for number in range(5):
        name = f"{number % 2:012d}.jpg"
        draw(folder / "images" / name)
        line = {"image": name, "caption": f"the cat is left of a dog {number} .", "label": number % 2}
        lines.append({**line, "relation": "left of", "subj": "cat", "obj": "dog"})
    dump(folder / "splits/zeroshot/test.jsonl", lines, lines=True)


def iconqa(folder):
    problems = {}
    for number in range(4):
        draw(folder / f"iconqa/test/choose_txt/{number}/image.png")
        choices = list(COLORS[number : number + 2 + number % 3])
        problems[str(number)] = {
            "question": QUESTIONS[number], "choices": choices, "answer": number % 2, "ques_type": "choose_txt",
            "split": "test", "grade": "grade1", "label": "S",
        }  # fmt: skip
    dump(folder / "problems.json", problems)
    dump(folder / "pid_splits.json", {"choose_txt_test": list(problems), "choose_img_test": []})


def rosetta(folder, names):
    words = [[], ["red", "Cat"], ["one"] * 40, ["stop"]]
    entries = [{"image_id": name, "ocr_tokens": words[number % 4], "ocr_info": []} for number, name in enumerate(names)]
    dump(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": entries})


def textvqa(folder):
    names = [f"{number:016x}" for number in range(3)]
    records = []
    for number in range(5):
        draw(folder / "train_images" / f"{names[number % 3]}.jpg")
        records.append(
            {"question_id": 34602 + number, "image_id": names[number % 3], "question": QUESTIONS[number % 4],
             "answers": ten(number), "image_classes": [], "set_name": "val"}
        )  # fmt: skip
    dump(folder / "TextVQA_0.5.1_val.json", {"data": records})
    rosetta(folder, names)


def textcaps(folder):
    names = [f"{number:016x}" for number in range(3)]
    records = []
    for number, name in enumerate(names):
        draw(folder / "train_images" / f"{name}.jpg")
        for place in range(5):
            records.append({"image_id": name, "caption_id": 5 * number + place, "caption_str": CAPTIONS[place % 4]})
    dump(folder / "TextCaps_0.1_val.json", {"data": records})
    rosetta(folder, names)


def visdial(folder):
    answers = [f"{color} {other}" for color in COLORS for other in COLORS] + ["yes it is"]
    dialogs, dense = [], []
    for number in range(2):
        draw(folder / f"VisualDialog_val2018/VisualDialog_val2018_{number:012d}.jpg")
        turns = []
        for place in range(10):
            options = [(7 * option + place) % 100 for option in range(100)]
            truth = (11 * place + number) % 100
            turns.append(
                {"question": place % 4, "answer": options[truth], "answer_options": options, "gt_index": truth}
            )
        dialogs.append({"image_id": number, "caption": CAPTIONS[number], "dialog": turns})
        relevance = [0.6 if option in (3, 50) else 0.0 for option in range(100)]
        dense.append({"image_id": number, "round_id": 3 + number, "gt_relevance": relevance})
    data = {"questions": list(QUESTIONS), "answers": answers, "dialogs": dialogs}
    dump(folder / "visdial_1.0_val.json", {"version": "1.0", "split": "val2018", "data": data})
    dump(folder / "visdial_1.0_val_dense_annotations.json", dense)


def hateful_memes(folder):
    for split, first in (("dev_seen", 0), ("test_seen", 10)):
        lines = []
        for number in range(first, first + 4):
            draw(folder / f"img/{number:05d}.png")
            line = {
                "id": number,
                "img": f"img/{number:05d}.png",
                "label": number % 2,
                "text": f"is this a dog {number}",
            }
            lines.append(line)
        dump(folder / f"{split}.jsonl", lines, lines=True)


def vizwiz(folder):
    for part in ("val", "test"):
        records = []
        for number in range(4):
            name = f"VizWiz_{part}_{number:08d}.jpg"
            draw(folder / part / name)
            record = {"image": name, "question": QUESTIONS[number]}
            if part == "val":
                given = [{"answer": answer, "answer_confidence": "yes"} for answer in ten(number)]
                record |= {"answers": given, "answer_type": "other", "answerable": 1}
            records.append(record)
        dump(folder / f"Annotations/{part}.json", records)


def scienceqa(folder):
    problems = {}
    for number in range(5):
        image = None if number == 4 else "image.png"  # a question without a picture is left out
        if image:
            draw(folder / f"images/test/{number}/image.png")
        problems[str(number)] = {
            "question": QUESTIONS[number % 4], "choices": list(COLORS[: 2 + number % 3]), "answer": 1,
            "hint": "" if number % 2 else "the cat is in the photo", "image": image, "grade": "grade2",
            "subject": "social science", "topic": "geography", "split": "test",
        }  # fmt: skip
    dump(folder / "problems.json", problems)
    dump(folder / "pid_splits.json", {"train": [], "val": [], "test": list(problems)})


def video_questions(folder, clip, **other):
    """Training answers without their clips, and questions about two clips."""
    for split, first, answers in (("train", 0, [*COLORS, "red", "red", "blue"]), ("test", 100, COLORS[:5])):
        records = []
        for number, answer in enumerate(answers):
            record = {"answer": answer, "id": first + number, "question": QUESTIONS[number % 4]}
            records.append({**record, "video_id": first + number % 2, **other})
        dump(folder / f"{split}_qa.json", records)
    for number in range(2):
        write_clip(folder / "video" / clip.format(100 + number))


def msvd_qa(folder):
    video_questions(folder, "vid{}.avi")
    (folder / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15 vid1\n")


def msrvtt_qa(folder):
    video_questions(folder, "video{}.mp4", category_id=14)


def ivqa(folder):
    with open(folder / "test.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video_id", "question", *(f"answer{number}" for number in range(1, 6))])
        for number in range(3):
            given = [COLORS[number]] * 3 + [COLORS[number + 1]] * 2
            writer.writerow([f"clip{number}", f"{QUESTIONS[number]}, this", *given])
            write_clip(folder / "video" / f"clip{number}.mp4")


def vqa_files(folder, prefix, annotations):
    questions, answers = [], []
    for number in range(5):
        draw(folder / f"val2014/COCO_val2014_{number % 2:012d}.jpg")
        key = {"image_id": number % 2, "question_id": 1000 * (number % 2) + number}
        questions.append({**key, "question": QUESTIONS[number % 4]})
        given = [
            {"answer": answer, "answer_confidence": "yes", "answer_id": place}
            for place, answer in enumerate(ten(number), start=1)
        ]
        answers.append({**key, "question_type": "what", "answer_type": "other", "answers": given})
    dump(folder / f"{prefix}_val2014_questions.json", {"questions": questions})
    dump(folder / f"{annotations}_val2014_annotations.json", {"annotations": answers})


def vqav2(folder):
    vqa_files(folder, "v2_OpenEnded_mscoco", "v2_mscoco")


def okvqa(folder):
    vqa_files(folder, "OpenEnded_mscoco", "mscoco")


def aokvqa(folder):
    records = []
    for number in range(4):
        draw(folder / f"val2017/{number:012d}.jpg")
        records.append(
            {"split": "val", "image_id": number, "question_id": f"q{number}", "question": QUESTIONS[number],
             "choices": list(COLORS[number : number + 4]), "correct_choice_idx": number % 4,
             "direct_answers": ten(number), "difficult_direct_answer": number == 3, "rationales": ["a", "b", "c"]}
        )  # fmt: skip
    dump(folder / "aokvqa_v1p0_val.json", records)


def ocr_vqa(folder):
    books = {}
    for number in range(3):
        draw(folder / f"images/{number}.jpg")
        books[str(number)] = {
            "imageURL": f"http://ecx.images-amazon.com/{number}.jpg", "title": "a", "authorName": "b", "genre": "c",
            "questions": [QUESTIONS[number], "is this a photo ?"], "answers": ["a red dog", "Yes"],
            "split": 1 if number == 2 else 3,
        }  # fmt: skip
    dump(folder / "dataset.json", books)


def pope(folder):
    for config in ("random", "popular", "adversarial"):
        lines = []
        for number in range(6):
            name = f"COCO_val2014_{number // 3:012d}.jpg"
            draw(folder / "val2014" / name)
            text = f"Is there a {COLORS[6 + number % 2]} in the image?"
            line = {"question_id": number + 1, "image": name, "text": text, "label": ("yes", "no")[number % 2]}
            lines.append(line)
        dump(folder / f"coco_pope_{config}.json", lines, lines=True)


def nlvr(folder):
    lines = []
    for number in range(4):
        draw(folder / f"test/images/{number % 2}/test-{number}-0-0.png")
        line = {"sentence": f"there is a red dog {number}", "label": ("true", "false")[number % 2]}
        lines.append({**line, "identifier": f"{number}-0", "directory": str(number % 2), "evals": {}})
    dump(folder / "test/test.json", lines, lines=True)


def vqa_rad(folder):
    fixed = {"image_organ": "HEAD", "question_type": "PRES", "phrase_type": "freeform"}
    for file, first in (("trainset", 0), ("testset", 10)):
        records = []
        for number in range(first, first + 5):
            name = f"synpic{number % 2}.jpg"
            draw(folder / "images" / name)
            kind = ("CLOSED", "OPEN")[number % 2]
            record = {"qid": number, "image_name": name, "question": QUESTIONS[number % 4], "answer_type": kind}
            records.append({**record, **fixed, "answer": ("Yes", "red", "No", "two dog", "blue")[number - first]})
        dump(folder / f"{file}.json", records)


WRITERS = {
    write.__name__: write
    for write in (
        nocaps, flickr30k, gqa, vsr, iconqa, textvqa, visdial, hateful_memes, vizwiz, scienceqa, msvd_qa, msrvtt_qa,
        ivqa, coco_caption, textcaps, vqav2, okvqa, aokvqa, ocr_vqa, pope, nlvr, vqa_rad,
    )
}  # fmt: skip
