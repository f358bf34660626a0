"""What a record of a user's own data means: the samples it makes, whichever of the known forms it has.

{"image": ..., "question": ..., "answer": ...}        with answers, choices, label, context, ocr_tokens, history
{"image": ..., "instruction": ..., "response": ...}   used as it is
{"image": ..., "caption": ...}                        or captions; `text` in image folders
{"image": ..., "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", ...}]}
{"images": [...], "messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
{"images": [...], "texts": [{"user": ..., "assistant": ..., "source": ...}]}
"""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .official_files import describe, field, text_field
from .schema import make_sample

IMAGE_TOKEN = "<image>"  # where an image stands in a text
IMAGE_KEYS = ("image", "images", "file_name", "file_names")
CAPTION_KEYS = ("caption", "captions", "text")
TURN_KEYS = ("conversations", "messages", "texts")
KEYS = (
    *("id", *IMAGE_KEYS, "question", "answer", "answers", "choices", "label", "context", "ocr_tokens", "history"),
    *("instruction", "response", *CAPTION_KEYS, *TURN_KEYS),
)
LIST_KEYS = ("images", "file_names", "answers", "choices", "ocr_tokens", "history", "captions", *TURN_KEYS)
# What others call our fields: named in messages, never read by guess.
OTHER_NAMES = {
    **dict.fromkeys(("img", "image_path", "img_path", "image_file", "picture", "photo", "filename", "path"), "image"),
    **dict.fromkeys(("query", "questions"), "question"),
    **dict.fromkeys(("ground_truth", "gt_answer", "target"), "answer"),
    **dict.fromkeys(("options", "candidates"), "choices"),
    **dict.fromkeys(("prompt", "input"), "instruction"),
    **dict.fromkeys(("output", "completion", "reply"), "response"),
    **dict.fromkeys(("ocr", "ocr_text"), "ocr_tokens"),
    **dict.fromkeys(("conversation", "dialog", "dialogue"), "conversations"),
}
COUNTERPARTS = {"instruction": "question", "response": "answer", "question": "instruction", "answer": "response"}
FORMS = """The forms that can be read, by their keys:
  question and answer (or answers, or choices with label);
  instruction and response, used as they are;
  caption, captions or text;
  conversations: [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}], as LLaVA has them;
  messages: [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}];
  texts: [{"user": ..., "assistant": ...}], as the_cauldron and FineVision have them;
each with image or file_name (one), images (several), or neither for turns of text alone.
Where yours have other names, say so: columns={"question": "your name for it"}."""
SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1, "model": 1}


@dataclasses.dataclass(frozen=True)
class Reading:
    """How records are read.

    Args:
        columns: (our field, the record's key for it) where they differ; None for the key: the record has no such
            field, whatever looks like one.
        history: whether the turns before a turn are its history. None: in `conversations` and `messages`, and not in
            `texts`, which mostly hold unrelated questions about one image.
    """

    columns: tuple[tuple[str, str | None], ...] = ()
    history: bool | None = None

    def __post_init__(self):
        for ours, _ in self.columns:
            if ours not in KEYS:
                raise ValueError(f"columns: no field {ours!r}{_did_you_mean(ours, KEYS)}; there are {', '.join(KEYS)}")

    def key_of(self, name: str) -> str | None:
        """The key that records have for our field `name`."""
        return dict(self.columns).get(name, name)


@dataclasses.dataclass(frozen=True)
class Example:
    """One sample of a record, and what it shows: the images as the record has them, in order."""

    images: tuple[Any, ...]
    sample: dict[str, Any]


def read_record(record: Any, reading: Reading, default_id: str, prefix: str) -> list[Example]:
    """The samples of a record; images are handed on unseen.

    Args:
        default_id: names samples of a record without `id`.
        prefix: of sample ids.

    Raises:
        ValueError: a record of no known form, or a field that is missing, misspelled or of the wrong kind.
    """
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {describe(record)}")
    record = _with_our_names(record, reading)
    present = tuple(name for name in record if record[name] is not None)
    _refuse_misspelled(present, reading.columns)
    images = _images(record)
    turn_key = next((name for name in TURN_KEYS if name in present), None)
    if turn_key is None:
        identity = field(record, "id", str, int) if "id" in present else None
        sample = {"id": f"{prefix}/{default_id if identity is None else identity}", **_fields(record, present)}
        _check_image_tokens(sample, len(images))
        return [Example(images, make_sample(**sample))]
    return _turn_examples(record, turn_key, images, reading.history, f"{prefix}/{default_id}")


# ---- Names


def _with_our_names(record: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    if not reading.columns:
        return dict(record)
    columns = dict(reading.columns)
    kept = {key: value for key, value in record.items() if key not in columns and key not in columns.values()}
    for ours, theirs in columns.items():
        if theirs is not None:
            try:
                kept[ours] = _at(record, theirs)
            except KeyError as error:
                raise ValueError(
                    f"{theirs!r}, named in columns for {ours!r}, is missing: found {describe(record)}"
                ) from error
    return kept


def _at(value: Any, path: str) -> Any:
    """What lies at a path such as "answers.answer", through lists too; a key may have dots in it."""
    if isinstance(value, list):
        return [_at(item, path) for item in value]
    if isinstance(value, dict) and path in value:
        return value[path]
    first, dot, rest = path.partition(".")
    if not dot or not isinstance(value, dict):
        raise KeyError(path)
    return _at(value[first], rest)


@functools.lru_cache(maxsize=256)
def _refuse_misspelled(present: tuple[str, ...], columns: tuple[tuple[str, str | None], ...]) -> None:
    """Records may have keys of their own, but none that is nearly one of ours: it would be passed over in silence."""
    free = [name for name in KEYS if name not in present and name not in dict(columns)]
    for key in present:
        if key in KEYS:
            continue
        meant = _meant(key, free)
        if meant is not None:
            raise ValueError(
                f"{key!r} is not read: if it is {meant!r}, rename it or pass columns={{{meant!r}: {key!r}}}; "
                f"if not, columns={{{meant!r}: None}}"
            )


def _meant(key: str, names: Sequence[str]) -> str | None:
    """The one of `names` that `key` stands for or misspells; longer names such as "image_width" are their own."""
    if OTHER_NAMES.get(key.lower()) in names:
        return OTHER_NAMES[key.lower()]
    if any(key.lower().startswith(f"{name}_") for name in KEYS):
        return None
    return next(iter(difflib.get_close_matches(key.lower(), names, 1, cutoff=0.8)), None)


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _missing(name: str, record: Mapping[str, Any]) -> ValueError:
    free = [key for key in record if key not in KEYS]
    close = [key for key in record if key == COUNTERPARTS.get(name)] or [key for key in free if name in key]
    close = close or difflib.get_close_matches(name, free, 1, cutoff=0.6)
    hint = f". If {close[0]!r} is meant, pass columns={{{name!r}: {close[0]!r}}}" if close else ""
    return ValueError(f"{name!r} is missing: found {describe(record)}{hint}")


# ---- Images


def _images(record: dict[str, Any]) -> tuple[Any, ...]:
    """The images of a record; none where it has text alone."""
    named = [name for name in IMAGE_KEYS if name in record]
    if not named:
        if any(name in record for name in TURN_KEYS):
            return ()
        raise _missing("image", record)
    if len(named) > 1:
        unset = [name for name in named if record[name] is None]
        named = [name for name in named if name not in unset] or named[:1]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(map(repr, named))}: give one of them, or pass columns={{{named[1]!r}: None}}")
    value = record[named[0]]
    if value is None:
        return ()
    if isinstance(value, list):
        for number, image in enumerate(value):
            if image is None or (isinstance(image, str) and not image.strip()):
                raise ValueError(f"'{named[0]}[{number}]' is empty")
        return tuple(value)
    if named[0] in ("images", "file_names"):
        raise ValueError(f"'{named[0]}' should be a list, is {describe(value)}; one image goes into 'image'")
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"'{named[0]}' is blank; write null where there is no image")
    return (value,)


def _check_image_tokens(sample: Mapping[str, Any], images: int) -> None:
    """As many `<image>` in what is asked as there are images, or none.

    Raises:
        ValueError: another number, or one in an answer.
    """
    if any(IMAGE_TOKEN in answer for answer in (*sample["answers"], *sample.get("choices", ()))):
        raise ValueError(f"an answer has {IMAGE_TOKEN} in it")
    asked = [sample["question"], sample.get("context", ""), *sample.get("ocr_tokens", ())]
    asked += [text for turn in sample.get("history", ()) for text in turn.values()]
    marks = sum(text.count(IMAGE_TOKEN) for text in asked)
    if marks not in (0, images):
        raise ValueError(f"{marks} {IMAGE_TOKEN} for {images} images: mark each one, in order, or none")


# ---- Questions, instructions, captions


def _fields(record: dict[str, Any], present: Sequence[str]) -> dict[str, Any]:
    """Question, answers and the rest of a sample, without its id."""
    context = _text(record, "context") if "context" in present and record["context"] != "" else ""
    rest = {"context": context, "ocr_tokens": _texts(record, "ocr_tokens"), "history": _history(record.get("history"))}
    if "instruction" in present or "response" in present:
        answers = _answers(record, "response")
        return {"question": _text(record, "instruction"), "answers": answers, **rest, "tags": ["task=chat"]}
    if "question" in present:
        return {**_asked(record, present), **rest}
    captions = [name for name in CAPTION_KEYS if name in record]
    if captions and not {"answer", "answers", "choices"} & set(present):
        name = captions[0] if captions[0] == "captions" else ""
        answers = _texts(record, name) if name else _answers(record, captions[0])
        return {"question": "", "answers": answers, **rest, "tags": ["task=caption"]}
    if {"answer", "answers", "choices"} & set(present):
        raise _missing("question", record)
    raise ValueError(f"no known form: found {describe(record)}.\n{FORMS}")


def _asked(record: dict[str, Any], present: Sequence[str]) -> dict[str, Any]:
    question = _text(record, "question")
    if "answer" in present and "answers" in present:
        raise ValueError("'answer' and 'answers': give one of them, or pass columns={'answer': None}")
    if "choices" in present:
        return {"question": question, **_chosen(record, present), "tags": ["task=multiple_choice"]}
    if "label" in present:
        raise ValueError("'label' without 'choices' says nothing: add choices, or pass columns={'label': None}")
    answers = _texts(record, "answers") if "answers" in present else _answers(record, "answer")
    return {"question": question, "answers": answers, "tags": ["task=vqa"]}


def _chosen(record: dict[str, Any], present: Sequence[str]) -> dict[str, Any]:
    """Answers, choices and label of a multiple-choice question; the answer may be a choice's text or letter."""
    choices = _texts(record, "choices")
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise ValueError(f"'choices' should be two or more different texts, is {choices}")
    label = _label(record["label"], choices, "label") if "label" in present else -1
    if "answers" in present:
        return {"answers": _texts(record, "answers"), "choices": choices, "label": label}
    if "answer" in present:
        named = _label(record["answer"], choices, "answer")
        if label not in (-1, named):
            raise ValueError(f"'answer' says {choices[named]!r} and 'label' says {choices[label]!r}")
        label = named
    elif label < 0 and "answer" not in record and "label" not in record:
        raise ValueError(f"'answer' or 'label' is missing: found {describe(record)}; null where it is not known")
    return {"answers": [choices[label]] if label >= 0 else [], "choices": choices, "label": label}


def _label(value: Any, choices: Sequence[str], name: str) -> int:
    """The choice that is meant by its text, its letter or, as a label, its number from 0."""
    last = chr(ord("a") + len(choices) - 1)
    if type(value) is int and name == "label":
        if not 0 <= value < len(choices):
            raise ValueError(f"'label' is {value}: expected 0 to {len(choices) - 1}")
        return value
    text = _as_text(value, name)
    if text in choices:
        return choices.index(text)
    letter = text.strip("(). ").lower()
    if len(letter) == 1 and "a" <= letter <= last:
        return ord(letter) - ord("a")
    if name == "label" and text.isdecimal() and int(text) < len(choices):  # a cell of a CSV file
        return int(text)
    raise ValueError(f"'{name}' is {describe(value)}: none of the choices {list(choices)} and no letter up to {last}")


def _answers(record: dict[str, Any], name: str) -> list[str]:
    """One answer as a list; none where it is null."""
    if name not in record:
        raise _missing(name, record)
    if record[name] is None:
        return []
    if name == "answer" and isinstance(record[name], list):
        raise ValueError("'answer' is a list: several answers go into 'answers'")
    return [_as_text(record[name], name)]


def _text(record: dict[str, Any], name: str) -> str:
    if record.get(name) is None:
        raise _missing(name, {key: value for key, value in record.items() if value is not None})
    return field(record, name, str).strip()


def _texts(record: dict[str, Any], name: str) -> list[str]:
    """A list of texts; empty where the record has none."""
    if record.get(name) is None:
        return []
    if isinstance(record[name], str):
        raise ValueError(f"'{name}' should be a list of texts, is {describe(record[name])}")
    return [_as_text(value, f"{name}[{number}]") for number, value in enumerate(field(record, name, list))]


def _as_text(value: Any, name: str) -> str:
    """A text, or a number as text: JSON has `"answer": 2` as often as `"answer": "2"`."""
    if isinstance(value, bool):
        raise ValueError(f"'{name}' is {str(value).lower()}: write the word that is to be learned, such as \"yes\"")
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise ValueError(f"'{name}' is {value}: write null where there is none")
        return str(value)
    return field({name: value}, name, str).strip()


def _history(turns: Any) -> list[dict[str, str]]:
    """Earlier rounds, each {"question", "answer"} or a pair."""
    if turns is None:
        return []
    if not isinstance(turns, list):
        raise ValueError(f"'history' should be a list of rounds, is {describe(turns)}")
    rounds = []
    for number, turn in enumerate(turns):
        if isinstance(turn, list) and len(turn) == 2:
            turn = {"question": turn[0], "answer": turn[1]}
        if not isinstance(turn, dict) or not {"question", "answer"} <= turn.keys():
            raise ValueError(f"'history[{number}]' should have question and answer, is {describe(turn)}")
        rounds.append({key: _as_text(turn[key], f"history[{number}].{key}") for key in ("question", "answer")})
    return rounds


# ---- Turns


def _turn_examples(
    record: dict[str, Any],
    turn_key: str,
    images: tuple[Any, ...],
    history: bool | None,
    identity: str,
) -> list[Example]:
    """One example a turn. With `<image>` in the texts, a turn shows the images that were marked up to it."""
    rounds = _texts_rounds(record[turn_key]) if turn_key == "texts" else _message_rounds(record[turn_key], turn_key)
    if history is None:
        history = turn_key != "texts"
    marks = sum(question.count(IMAGE_TOKEN) for question, _, _ in rounds)
    if marks not in (0, len(images)):
        raise ValueError(f"{marks} {IMAGE_TOKEN} in '{turn_key}' for {len(images)} images: mark each one or none")
    examples: list[Example] = []
    earlier: list[dict[str, str]] = []
    shown = 0 if marks else len(images)
    for number, (question, answer, source) in enumerate(rounds, start=1):
        shown += question.count(IMAGE_TOKEN)
        if len(images) == 1:  # at the ends of the text the mark says nothing that the image's column does not say
            question = re.sub(rf"^(\s*{IMAGE_TOKEN})+\s*|\s*({IMAGE_TOKEN}\s*)+$", "", question)
        if not question.strip():
            raise ValueError(f"round {number} of '{turn_key}' asks nothing but {IMAGE_TOKEN}")
        tags = ["task=chat"]
        if record.get("id") is not None:
            tags.append(f"id={field(record, 'id', str, int)}")
        if source:
            tags.append(f"source={source}")
        sample = {"id": f"{identity}/{number}", "question": question.strip(), "answers": [answer], "tags": tags}
        if history:
            sample["history"] = list(earlier)
        _check_image_tokens(sample, shown)
        examples.append(Example(images[:shown], make_sample(**sample)))
        earlier.append({"question": sample["question"], "answer": answer})
    return examples


def _texts_rounds(texts: Any) -> list[tuple[str, str, str]]:
    """(user, assistant, source) of the_cauldron and FineVision; an older `datasets` gives a dict of lists."""
    if isinstance(texts, dict) and all(isinstance(value, list) for value in texts.values()):
        texts = [dict(zip(texts, values, strict=True)) for values in zip(*texts.values(), strict=True)]
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"'texts' should be a list of rounds, is {describe(texts)}")
    rounds = []
    for number, turn in enumerate(texts):
        if not isinstance(turn, dict) or not {"user", "assistant"} <= turn.keys():
            raise ValueError(f"'texts[{number}]' should have user and assistant, is {describe(turn)}")
        named = {f"texts[{number}].{key}": turn[key] for key in ("user", "assistant")}
        user, assistant = (_answer_without_mark(named, name) for name in named)
        rounds.append((user, assistant, text_field(turn, "source") if turn.get("source") is not None else ""))
    return rounds


def _message_rounds(messages: Any, turn_key: str) -> list[tuple[str, str, str]]:
    """(question, answer, "") of messages that two take in turns; what the system says goes in front of the first."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"'{turn_key}' should be a list of messages, is {describe(messages)}")
    who, what = ("from", "value") if turn_key == "conversations" else ("role", "content")
    system, spoken = "", []
    for number, message in enumerate(messages):
        name = f"{turn_key}[{number}]"
        if not isinstance(message, dict) or not {who, what} <= message.keys():
            raise ValueError(f"'{name}' should have {who} and {what}, is {describe(message)}")
        text = field({f"{name}.{what}": _joined(message[what])}, f"{name}.{what}", str).strip()
        speaker = message[who]
        if speaker == "system" and number == 0:
            system = f"{text}\n"
            continue
        if not isinstance(speaker, str) or SPEAKERS.get(speaker) != len(spoken) % 2:
            expected = " or ".join(key for key, side in SPEAKERS.items() if side == len(spoken) % 2)
            raise ValueError(f"'{name}' is from {describe(speaker)}, expected {expected}")
        spoken.append(text)
    if not spoken or len(spoken) % 2:
        raise ValueError(f"'{turn_key}' ends with a question: expected an answer to each")
    if any(IMAGE_TOKEN in answer for answer in spoken[1::2]):
        raise ValueError(f"an answer in '{turn_key}' has {IMAGE_TOKEN} in it")
    spoken[0] = system + spoken[0]
    return [(spoken[number], spoken[number + 1], "") for number in range(0, len(spoken), 2)]


def _joined(content: Any) -> Any:
    """Text of a message whose content is a list of parts; the images themselves are in `image` or `images`."""
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "image"):
            raise ValueError(f"expected parts of type text and image in a message, found {describe(part)}")
        parts.append(IMAGE_TOKEN if kind == "image" else field(part, "text", str).strip())
    return "\n".join(parts)


def _answer_without_mark(named: dict[str, Any], name: str) -> str:
    text = field(named, name, str).strip()
    if name.endswith("assistant") and IMAGE_TOKEN in text:
        raise ValueError(f"'{name}' has {IMAGE_TOKEN} in it")
    return text
