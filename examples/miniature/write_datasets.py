"""Write the small world's counterparts of the paper's 26 datasets, each in the official layout of the real one:

    python examples/miniature/write_datasets.py outputs/miniature/data

From there on everything is the package's: `load("vqav2", "outputs/miniature/data/vqav2")`, the mixture, the tasks. The
sizes are as uneven as the real ones (about a two-thousandth, and none below a hundred), so that balancing matters.

What is held out is: relations between things (GQA, VSR), counting with choices (IconQA), films (MSVD-QA, MSRVTT-QA,
iVQA), a text that must be applied to the picture (ScienceQA), a text that the picture makes hateful (HatefulMemes),
dialogue (Visual Dialog) and captions of shapes that no training caption names (NoCaps).
"""

import argparse
import csv
import dataclasses
import json
import random
import shutil
import tarfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import skills
from drawing import SIZE, draw
from PIL import Image, ImageFilter
from skills import Exchange
from tqdm import tqdm
from world import FEELINGS, NAMES, SHAPES, SIGNS, TITLES, Clip, Scene, new_clip, new_scene

CAPTIONED = SHAPES[:6]  # what training captions name; the other two come in questions only
TEST = 150  # pictures of an evaluation set


class Folder:
    """A dataset's folder, and the pictures that go into it.

    Args:
        scale: how many pictures, relative to what is written below; the tests take few.
        blank: all pictures are the same gray, for a model that is to see nothing.
    """

    def __init__(self, path: Path, name: str, seed: int, scale: float, blank: bool):
        self.path, self.scale, self.blank = path, scale, blank
        self.rng = random.Random(f"{seed}/{name}")
        path.mkdir(parents=True)

    def scaled(self, count: int) -> int:
        return max(4, round(self.scale * count))

    def draw(self, scene: Scene, seed: int | None = None) -> Image.Image:
        seed = self.rng.getrandbits(32) if seed is None else seed
        return Image.new("RGB", (SIZE, SIZE), "gray") if self.blank else draw(scene, seed)

    def picture(self, name: str, scene: Scene, change: Callable[[Image.Image], Image.Image] | None = None) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = self.draw(scene)
        (change(image) if change else image).save(path, quality=95)

    def clip(self, name: str, clip: Clip) -> None:
        seed = self.rng.getrandbits(32)  # the same for all frames: what does not change stays where it is
        for number, frame in enumerate(clip.frames):
            path = self.path / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.draw(frame, seed).save(path, quality=95)

    def json(self, name: str, content: Any) -> None:
        self.text(name, json.dumps(content))

    def lines(self, name: str, records: Iterable[Any]) -> None:
        self.text(name, "".join(json.dumps(record) + "\n" for record in records))

    def text(self, name: str, content: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def ask(scene: Scene, ways: Sequence[skills.Skill], count: int, rng: random.Random) -> list[Exchange]:
    """Up to `count` different questions about a scene."""
    asked: dict[str, Exchange] = {}
    for _ in range(8 * count):
        exchange = rng.choice(ways)(scene, rng)
        if exchange is not None:
            asked.setdefault(exchange.question, exchange)
        if len(asked) == count:
            break
    return list(asked.values())


def plain(rng: random.Random) -> Scene:
    return new_scene(rng)


def captioned(rng: random.Random) -> Scene:
    return new_scene(rng, CAPTIONED)


def ten(answer: str) -> list[str]:
    """The answers of ten people who agree."""
    return [answer] * 10


# ---- held in


def coco_caption(folder: Folder) -> None:
    images = []
    splits = [
        split for split, count in (("train", 280), ("val", 20), ("test", 100)) for _ in range(folder.scaled(count))
    ]
    for number, split in enumerate(splits, start=1):
        scene = captioned(folder.rng)
        name = f"COCO_train2014_{number:012d}.jpg"
        folder.picture(f"train2014/{name}", scene)
        sentences = [{"raw": skills.caption(scene, folder.rng)} for _ in range(5)]
        images.append(
            {"filepath": "train2014", "filename": name, "cocoid": number, "split": split, "sentences": sentences}
        )
    folder.json("dataset_coco.json", {"images": images})


def capfilt(folder: Folder) -> None:
    """As img2dataset writes them: captions of all kinds of pictures, with more details; some leave a thing out."""
    with tarfile.open(folder.path / "00000.tar", "w") as tar:
        for number in range(folder.scaled(4000)):
            above, below = (folder.rng.choice(((), (), (), (), SIGNS)) for _ in range(2))
            scene = new_scene(folder.rng, CAPTIONED, top_words=above, bottom_words=below)
            told = scene.things[: max(1, len(scene.things) - (folder.rng.random() < 0.1))]
            write = skills.reading_caption if scene.words else partial(skills.caption, detail=0.5)
            caption = write(dataclasses.replace(scene, things=told), folder.rng)
            picture = BytesIO()
            folder.draw(scene).save(picture, "JPEG", quality=95)
            about = json.dumps({"caption": caption, "url": f"http://example.com/{number}.jpg", "status": "success"})
            for ending, content in (
                ("jpg", picture.getvalue()), ("json", about.encode()), ("txt", caption.encode()),
            ):  # fmt: skip
                entry = tarfile.TarInfo(f"{number:09d}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))


def textcaps(folder: Folder) -> None:
    for part, count in (("train", 60), ("val", 60)):
        records, words = [], []
        for number in range(folder.scaled(count)):
            above = folder.rng.choice(((), SIGNS))
            scene, name = new_scene(folder.rng, CAPTIONED, top_words=above, bottom_words=SIGNS), f"{part}{number:012d}"
            folder.picture(f"train_images/{name}.jpg", scene)
            words.append({"image_id": name, "ocr_tokens": list(scene.words), "ocr_info": []})
            for place in range(5):
                caption = skills.reading_caption(scene, folder.rng)
                records.append({"image_id": name, "caption_id": 5 * number + place, "caption_str": caption})
        folder.json(f"TextCaps_0.1_{part}.json", {"data": records})
        folder.json(f"TextVQA_Rosetta_OCR_v0.2_{part}.json", {"data": words})


def vqa_files(
    folder: Folder, prefix: str, annotations: str, ways: Sequence[skills.Skill], sizes: dict, each: int
) -> None:
    first = 0
    for part, size in sizes.items():
        questions, answers = [], []
        count = folder.scaled(size)
        for number in range(first, first + count):
            scene = plain(folder.rng)
            folder.picture(f"{part}2014/COCO_{part}2014_{number:012d}.jpg", scene)
            for place, exchange in enumerate(ask(scene, ways, each, folder.rng)):
                key = {"image_id": number, "question_id": 1000 * number + place}
                questions.append({**key, "question": exchange.question})
                given = [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": person}
                    for person, answer in enumerate(ten(exchange.answer), start=1)
                ]
                answers.append({**key, "question_type": "what", "answer_type": "other", "answers": given})
        folder.json(f"{prefix}_{part}2014_questions.json", {"questions": questions})
        folder.json(f"{annotations}_{part}2014_annotations.json", {"annotations": answers})
        first += count


def vqav2(folder: Folder) -> None:
    vqa_files(folder, "v2_OpenEnded_mscoco", "v2_mscoco", skills.LOOKING, {"train": 500, "val": 40}, 5)


def okvqa(folder: Folder) -> None:
    vqa_files(folder, "OpenEnded_mscoco", "mscoco", [skills.knowledge], {"train": 120, "val": 60}, 1)


def aokvqa(folder: Folder) -> None:
    first = 0
    for part, size in (("train", 180), ("val", 80)):
        records = []
        count = folder.scaled(size)
        for number in range(first, first + count):
            scene = plain(folder.rng)
            exchange = skills.everyday(scene, folder.rng)
            if exchange is None:
                continue
            folder.picture(f"{part}2017/{number:012d}.jpg", scene)
            records.append(
                {"split": part, "image_id": number, "question_id": f"q{number}", "question": exchange.question,
                 "choices": list(exchange.choices), "correct_choice_idx": exchange.choices.index(exchange.answer),
                 "direct_answers": ten(exchange.answer), "difficult_direct_answer": False, "rationales": []}
            )  # fmt: skip
        folder.json(f"aokvqa_v1p0_{part}.json", records)
        first += count


def ocr_vqa(folder: Folder) -> None:
    books = {}
    splits = [split for split, count in ((1, 500), (2, 40), (3, 40)) for _ in range(folder.scaled(count))]
    for number, split in enumerate(splits):
        scene = new_scene(folder.rng, top_words=TITLES, bottom_words=NAMES, most=2)
        folder.picture(f"images/{number}.jpg", scene)
        exchanges = ask(scene, [skills.cover], 3, folder.rng)
        books[str(number)] = {
            "imageURL": f"http://example.com/{number}.jpg", "title": scene.top_word, "authorName": scene.bottom_word,
            "genre": skills.GENRE[scene.ground], "questions": [each.question for each in exchanges],
            "answers": [each.answer for each in exchanges], "split": split,
        }  # fmt: skip
    folder.json("dataset.json", books)


def llava_instruct(folder: Folder) -> None:
    """Conversations, descriptions in detail, and answers that give reasons."""
    for name, count in (("conversation_58k", 120), ("detail_23k", 100), ("complex_reasoning_77k", 160)):
        records = []
        while len(records) < folder.scaled(count):
            scene = plain(folder.rng)
            if name.startswith("conversation"):
                said = ask(scene, skills.LOOKING, 3, folder.rng)
            elif name.startswith("detail"):
                said = [Exchange("describe the picture in detail.", skills.detail(scene, folder.rng))]
            else:
                said = [each for each in [skills.reason(scene, folder.rng)] if each]
            if not said:
                continue
            number = f"{len(records):012d}"
            file = f"{name.split('_')[0]}{number}.jpg"
            folder.picture(f"train2017/{file}", scene)
            turns = []
            for place, exchange in enumerate(said):
                image = "<image>\n" if place == 0 else ""
                turns.append({"from": "human", "value": image + exchange.question})
                turns.append({"from": "gpt", "value": exchange.answer})
            records.append({"id": number, "image": file, "conversations": turns})
        folder.json(f"{name}.json", records)


# ---- held out


def nocaps(folder: Folder) -> None:
    images, annotations = [], []
    for number in range(folder.scaled(TEST)):
        scene = new_scene(folder.rng)
        new = sum(thing.shape not in CAPTIONED for thing in scene.things)
        domain = "in-domain" if not new else "out-domain" if new == len(scene.things) else "near-domain"
        name = f"{number:016x}"
        folder.picture(f"validation/{name}.jpg", scene)
        images.append({"id": number, "file_name": f"{name}.jpg", "open_images_id": name, "domain": domain})
        for place in range(10):
            caption = skills.caption(scene, folder.rng)
            annotations.append({"image_id": number, "id": 10 * number + place, "caption": caption})
    folder.json("nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})


def flickr30k(folder: Folder) -> None:
    """Fuller pictures, described with more of what can be told."""
    images = []
    for number in range(folder.scaled(TEST)):
        scene = new_scene(folder.rng, CAPTIONED, fewest=3)
        folder.picture(f"flickr30k-images/{number}.jpg", scene)
        sentences = [{"raw": skills.caption(scene, folder.rng, 0.6)} for _ in range(5)]
        images.append({"filename": f"{number}.jpg", "split": "test", "sentences": sentences})
    folder.json("dataset_flickr30k.json", {"images": images})


def gqa(folder: Folder) -> None:
    questions: dict[str, Any] = {}
    for number in range(folder.scaled(TEST)):
        scene = new_scene(folder.rng, fewest=2)
        folder.picture(f"images/n{number}.jpg", scene)
        for exchange in ask(scene, [skills.compositional], 2, folder.rng):
            types = {"detailed": "relate", "semantic": "rel", "structural": "query"}
            questions[str(len(questions))] = {
                "imageId": f"n{number}", "question": exchange.question, "answer": exchange.answer,
                "fullAnswer": exchange.answer, "isBalanced": True, "types": types,
            }  # fmt: skip
    folder.json("testdev_balanced_questions.json", questions)


def vsr(folder: Folder) -> None:
    records = []
    for number in range(folder.scaled(TEST)):
        scene = new_scene(folder.rng, fewest=2)
        folder.picture(f"images/{number:012d}.jpg", scene)
        for exchange in ask(scene, [skills.relation_statement], 2, folder.rng):
            record = {
                "image": f"{number:012d}.jpg",
                "caption": exchange.question,
                "label": int(exchange.answer == "true"),
            }
            records.append({**record, "relation": "relation", "subj": "thing", "obj": "thing"})
    folder.lines("splits/zeroshot/test.jsonl", records)


def problems_with_choices(
    folder: Folder, skill: skills.Skill, where: str, sizes: dict[str, int], **fields: str
) -> dict[str, Any]:
    """Problems by id, with a picture each; `sizes`: split -> how many, the first with the first ids."""
    problems: dict[str, Any] = {}
    for split, size in sizes.items():
        most = len(problems) + folder.scaled(size)
        while len(problems) < most:
            scene = new_scene(folder.rng, fewest=2)
            exchange = skill(scene, folder.rng)
            if exchange is None:
                continue
            number = str(len(problems))
            folder.picture(where.format(split=split, number=number), scene)
            problems[number] = {
                "question": exchange.question, "choices": list(exchange.choices), "hint": exchange.context,
                "answer": exchange.choices.index(exchange.answer), "split": split, "grade": "grade1", **fields,
            }  # fmt: skip
    return problems


def iconqa(folder: Folder) -> None:
    where, about = "iconqa/test/choose_txt/{number}/image.png", {"ques_type": "choose_txt", "label": "S"}
    problems = problems_with_choices(folder, skills.icons, where, {"test": TEST}, **about)
    folder.json("problems.json", problems)
    folder.json("pid_splits.json", {"choose_txt_test": list(problems)})


def scienceqa(folder: Folder) -> None:
    """The one held-out dataset with pictures to train on: the paper's Table 3 fine-tunes on it."""
    about = {"subject": "natural science", "topic": "materials", "image": "image.png"}
    sizes = {"test": TEST, "train": 300, "val": 40}
    problems = problems_with_choices(folder, skills.science, "images/{split}/{number}/image.png", sizes, **about)
    folder.json("problems.json", problems)
    ids = {split: [number for number, each in problems.items() if each["split"] == split] for split in sizes}
    folder.json("pid_splits.json", ids)


def textvqa(folder: Folder) -> None:
    records, words = [], []
    for number in range(folder.scaled(TEST)):
        scene, name = new_scene(folder.rng, top_words=SIGNS, bottom_words=SIGNS), f"{number:016x}"
        folder.picture(f"train_images/{name}.jpg", scene)
        read = list(scene.words)
        folder.rng.shuffle(read)
        words.append({"image_id": name, "ocr_tokens": read, "ocr_info": []})
        for exchange in ask(scene, [skills.sign], 1, folder.rng):
            records.append(
                {"question_id": len(records), "image_id": name, "question": exchange.question,
                 "answers": ten(exchange.answer), "image_classes": [], "set_name": "val"}
            )  # fmt: skip
    folder.json("TextVQA_0.5.1_val.json", {"data": records})
    folder.json("TextVQA_Rosetta_OCR_v0.2_val.json", {"data": words})


def visdial(folder: Folder) -> None:
    """Ten rounds each, with a hundred options: answers that other questions have, and the right one once."""
    answers = sorted({*skills.DIALOGUE_ANSWERS})
    answers = (answers + [f"{one} {two}" for one in skills.COLORS for two in SHAPES])[:100]
    questions: dict[str, int] = {}
    dialogs = []
    while len(dialogs) < folder.scaled(20):
        scene = new_scene(folder.rng, fewest=2)
        rounds = skills.dialogue(scene, folder.rng)
        if rounds is None:
            continue
        number = len(dialogs)
        folder.picture(f"VisualDialog_val2018/VisualDialog_val2018_{number:012d}.jpg", scene)
        turns = []
        for exchange in rounds:
            options = list(range(100))
            folder.rng.shuffle(options)
            answer = answers.index(exchange.answer)
            turns.append(
                {"question": questions.setdefault(exchange.question, len(questions)), "answer": answer,
                 "answer_options": options, "gt_index": options.index(answer)}
            )  # fmt: skip
        dialogs.append({"image_id": number, "caption": skills.caption(scene, folder.rng, 0.0), "dialog": turns})
    data = {"questions": list(questions), "answers": answers, "dialogs": dialogs}
    folder.json("visdial_1.0_val.json", {"version": "1.0", "split": "val2018", "data": data})


def hateful_memes(folder: Folder) -> None:
    records = []
    while len(records) < folder.scaled(TEST):
        wanted = len(records) % 2 == 0
        scene = new_scene(folder.rng, top_words=FEELINGS, bottom_words=SHAPES, most=3)
        exchange = skills.meme(scene, folder.rng)
        if exchange is None or (exchange.answer == "yes") is not wanted:
            continue
        name = f"img/{len(records):05d}.png"
        folder.picture(name, scene)
        records.append({"id": len(records), "img": name, "label": int(wanted), "text": exchange.context})
    folder.lines("dev_seen.jsonl", records)


def vizwiz(folder: Folder) -> None:
    """Pictures that are out of focus."""
    records = []
    for number in range(folder.scaled(TEST)):
        scene, name = plain(folder.rng), f"VizWiz_val_{number:08d}.jpg"
        folder.picture(f"val/{name}", scene, lambda image: image.filter(ImageFilter.GaussianBlur(1.2)))
        for exchange in ask(scene, skills.LOOKING, 1, folder.rng):
            given = [{"answer": answer, "answer_confidence": "yes"} for answer in ten(exchange.answer)]
            records.append(
                {"image": name, "question": f"can you tell me {exchange.question}", "answers": given,
                 "answer_type": "other", "answerable": 1}
            )  # fmt: skip
    folder.json("Annotations/val.json", records)


def video_questions(folder: Folder, name: str, each: int, **fields: Any) -> None:
    number = 0
    for split, count in (("train", 80), ("test", TEST // 2)):
        records = []
        for _ in range(folder.scaled(count)):
            clip = new_clip(folder.rng)
            number += 1
            if split == "test":
                folder.clip(f"video/{name.format(number)}", clip)
            ways = [lambda _, rng, clip=clip: skills.happening(clip, rng)]
            for exchange in ask(clip.frames[0], ways, each, folder.rng):
                record = {"id": 10000 * number + len(records), "video_id": number, "question": exchange.question}
                records.append({**record, "answer": exchange.answer, **fields})
        folder.json(f"{split}_qa.json", records)


def msvd_qa(folder: Folder) -> None:
    video_questions(folder, "vid{}", each=1)
    folder.text("youtube_mapping.txt", "clip_1 vid1\n")


def msrvtt_qa(folder: Folder) -> None:
    video_questions(folder, "video{}", each=3, category_id=14)


def ivqa(folder: Folder) -> None:
    """Five people answer; where there are two ways to say it, they are of two minds."""
    with open(folder.path / "test.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video_id", "question", *(f"answer{person}" for person in range(1, 6))])
        for number in range(folder.scaled(TEST // 2)):
            clip = new_clip(folder.rng)
            exchange = skills.happening(clip, folder.rng)
            if exchange is None:
                continue
            folder.clip(f"video/clip{number}", clip)
            others = exchange.synonyms * 2
            writer.writerow([f"clip{number}", exchange.question, *([exchange.answer] * (5 - len(others))), *others])


HELD_IN = (
    coco_caption,
    capfilt,
    textcaps,
    vqav2,
    okvqa,
    aokvqa,
    ocr_vqa,
    llava_instruct,
)  # VQG asks about three of them
HELD_OUT = (nocaps, flickr30k, gqa, vsr, iconqa, textvqa, visdial, hateful_memes, vizwiz, scienceqa, msvd_qa, msrvtt_qa,
            ivqa)  # fmt: skip


def write_datasets(
    root: Path, names: Iterable[str] | None = None, seed: int = 0, scale: float = 1.0, blank: bool = False
) -> None:
    """Write all datasets below `root`, one folder each; those that are there stay as they are.

    Args:
        names: None: all of them.
        scale: how many pictures, relative to the usual number.
        blank: draw nothing into the pictures; questions and answers stay as they are.
    """
    chosen = [write for write in (*HELD_IN, *HELD_OUT) if names is None or write.__name__ in names]
    for write in tqdm(chosen, desc="drawing the datasets", unit="dataset"):
        path, unfinished = root / write.__name__, root / f"{write.__name__}.unfinished"
        if path.exists():
            continue
        shutil.rmtree(unfinished, ignore_errors=True)
        write(Folder(unfinished, write.__name__, seed, scale, blank))
        unfinished.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("names", nargs="*", help="datasets; none: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="how many pictures, relative to the usual number")
    parser.add_argument("--blank", action="store_true", help="gray pictures, for a model that is to see nothing")
    args = parser.parse_args()
    write_datasets(args.root, args.names or None, args.seed, args.scale, args.blank)


if __name__ == "__main__":
    main()
