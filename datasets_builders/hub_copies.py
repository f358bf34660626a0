"""Copies of the datasets on the Hub, and what their columns mean, as data: the entries under `hub` in `specs/`.

    hub:
    - repo: lmms-lab/VQAv2
      splits: {validation: validation}           # ours: theirs
      columns:
        image: image
        image_id: "coco/{image_id:012d}"
        id: "vqav2/{question_id}"
        question: question
        answers: answers.answer

Optional keys: `config` (theirs), `variant` (the config of ours that this is; none: the one taken by default), `where`,
`each`, `split_on`, `image_rows` and `note`, see `HubCopy`.

What stands under `columns` is an expression:

- `answers.answer`: a column, or what is inside it; a list on the way gives a list, and `images.0` one item of it;
- `"coco/{image_id:012d}"`: a text with columns set into it as `str.format` would. Besides columns there are `{_row}`,
  counted from 1, `{_split}`, ours, `{_image}`, a digest of the image's bytes, and `{_item}`, counted from 0, where
  `each` makes several samples of a row;
- `[answer1, answer2]`: a list of expressions gives a list of values;
- `{from: file_name, pattern: '_(\\d{12})\\.', format: 'coco/{}'}`: what the group of the pattern finds in a text, set
  into `format`; without `format` as it is;
- `{value: ["false", "true"]}`: just that.

Each gives a field of a sample (`schema.SAMPLE_FEATURES`), `image_id`, or one of

- `image`, `images`: the column with the pixels; `images.0` where lists hold one image each;
- `image_file`: the name of a file; the copy has no pixels, and who loads it says where they are;
- `tags`: {name: expression}.

`label` may be a number or one of the choices. Where `answers` is left out, the answer is the choice at `label`.
"""

import dataclasses
import functools
import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

from .official_files import describe

TEXTS = ("id", "question", "context")  # fields that hold one text
LISTS = ("answers", "choices", "ocr_tokens")  # fields that hold several
MAY_BE_BLANK = ("answers", "ocr_tokens")  # blank ones are left out, as of the official files, but not all answers
FIELDS = (*TEXTS, *LISTS, "label", "history", "tags", "image_id")
IMAGES = ("image", "images", "image_file")
SPECIAL = ("_row", "_split", "_item", "_image")

Expression = str | list[Any] | dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ImageRows:
    """Where the pixels are in another config of the repository, one row an image."""

    config: str
    id: str  # column of that config that `key` is looked up in; `columns.image` is a column of that config too
    key: str  # column of the questions
    splits: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # ours: theirs, where not those of the questions


@dataclasses.dataclass(frozen=True)
class HubCopy:
    """One repository that holds a dataset, with one row a question or an image."""

    repo: str
    splits: Mapping[str, str]  # ours: theirs
    columns: Mapping[str, Expression]
    config: str | None = None  # of the repository
    variant: str = ""  # config of our builder whose rows these are; "": the one taken by default
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # column: value, or list of values, of the rows
    # that belong to the dataset; the others are left out
    each: tuple[str, ...] = ()  # columns with lists of one length, each place of which is a sample of the row
    split_on: Mapping[str, str] = dataclasses.field(default_factory=dict)  # field: what stands between a text's items
    image_rows: ImageRows | None = None
    note: str = ""  # what differs from the official files

    @classmethod
    def read(cls, place: str, entry: Any) -> "HubCopy":
        """An entry of a YAML file.

        Args:
            place: what messages begin with: "specs/vqav2.yaml: hub.0".

        Raises:
            ValueError: an unknown or missing key, or an expression that is none.
        """
        entry = dict(_mapping(place, entry))
        _check_keys(place, cls, entry)
        for key in ("splits", "columns", "where", "split_on"):
            entry[key] = _mapping(f"{place}.{key}", entry.get(key, {}))
        if not entry["splits"]:
            raise ValueError(f"{place}.splits: expected at least one split, ours: theirs")
        columns = entry["columns"]
        unknown = columns.keys() - {*FIELDS, *IMAGES}
        if unknown:
            raise ValueError(
                f"{place}.columns: no field {sorted(unknown)[0]!r}: there are {', '.join(FIELDS + IMAGES)}"
            )
        missing = {"id", "image_id"} - columns.keys()
        if missing or sum(name in columns for name in IMAGES) != 1:
            raise ValueError(f"{place}.columns: expected id, image_id, and one of {', '.join(IMAGES)}")
        if not {"answers", "label"} & columns.keys():
            raise ValueError(f"{place}.columns: expected answers, or label and choices")
        for name, expression in columns.items():
            where = f"{place}.columns.{name}"
            for part in _mapping(where, expression).values() if name == "tags" else [expression]:
                _check_expression(where, part)
        for name in IMAGES:
            expression = columns.get(name, "")
            if name != "image_file" and (not isinstance(expression, str) or "{" in expression):
                raise ValueError(f"{place}.columns.{name}: expected the name of a column")
        unsplit = [name for name in entry["split_on"] if name not in LISTS or name not in columns]
        if unsplit:
            raise ValueError(f"{place}.split_on: {unsplit[0]!r} is no list under columns")
        each = entry.get("each", ())
        entry["each"] = (each,) if isinstance(each, str) else tuple(each)
        if "image_rows" in entry:
            rows = _mapping(f"{place}.image_rows", entry["image_rows"])
            _check_keys(f"{place}.image_rows", ImageRows, rows)
            entry["image_rows"] = ImageRows(**rows)
        return cls(**entry)

    @property
    def image_column(self) -> str | None:
        """The column with the pixels; None where there are only names of files."""
        name = self.columns.get("image") or self.columns.get("images")
        return None if name is None else name.partition(".")[0]

    @property
    def paths(self) -> set[str]:
        """What is read besides pixels: columns, their parts, and names in `SPECIAL`."""
        mapped = [value for name, value in self.columns.items() if name not in ("image", "images")]
        paths = {path for value in mapped for path in _paths(value)} | {*self.where, *self.each}
        if self.image_rows is not None:
            paths.add(self.image_rows.key)
        return paths

    @property
    def text_columns(self) -> list[str]:
        """The columns that hold everything but pixels."""
        return sorted({path.partition(".")[0] for path in self.paths} - {*SPECIAL})

    def file(self, split: str) -> str:
        """What messages call a split of ours: "lmms-lab/VQAv2/default/validation"."""
        return "/".join(filter(None, (self.repo, self.config, self.splits[split])))

    def belongs(self, record: Mapping[str, Any]) -> bool:
        """Whether a row is of this dataset."""
        for path, wanted in self.where.items():
            if look_up(path, record) not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def records(self, record: Mapping[str, Any], row: int, split: str) -> Iterator[dict[str, Any]]:
        """What `each` makes of a row: the row itself where there is none.

        Raises:
            ValueError: a column in `each` that is no list, or lists of several lengths.
        """
        record = {**record, "_row": row, "_split": split}
        if not self.each:
            yield record
            return
        lists = {name: record[name] for name in self.each}
        for name, items in lists.items():
            if not isinstance(items, list):
                raise ValueError(f"column {name!r} should be a list, is {describe(items)}")
        if len({len(items) for items in lists.values()}) > 1:
            lengths = " and ".join(f"{len(items)} {name}" for name, items in lists.items())
            raise ValueError(f"expected as many of each, found {lengths}")
        for number in range(len(lists[self.each[0]])):
            yield {**record, **{name: items[number] for name, items in lists.items()}, "_item": number}

    def image_id(self, record: Mapping[str, Any]) -> str:
        """The image that a row shows.

        Raises:
            ValueError: it is no text.
        """
        return _text("image_id", evaluate(self.columns["image_id"], record))

    def image_file(self, record: Mapping[str, Any]) -> str:
        """The name of the file with the image that a row shows.

        Raises:
            ValueError: it is no text.
        """
        return _text("image_file", evaluate(self.columns["image_file"], record))

    def sample(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a sample, for `schema.make_sample`.

        Args:
            record: one of `records`.

        Raises:
            ValueError: a value of another type than its field has; names the field.
        """
        columns = self.columns
        values: dict[str, Any] = {"question": "", "answers": []}
        for name in TEXTS:
            if name in columns:
                value = evaluate(columns[name], record)
                values[name] = "" if name == "context" and value in (None, "") else _text(name, value)
        for name in LISTS:
            if name in columns:
                values[name] = self._texts(name, evaluate(columns[name], record))
        if "history" in columns:
            values["history"] = _history(evaluate(columns["history"], record))
        if "label" in columns:
            values["label"] = _label(evaluate(columns["label"], record), values.get("choices", []))
            if "answers" not in columns and values["label"] >= 0:
                values["answers"] = [values["choices"][values["label"]]]
        tags = {name: evaluate(value, record) for name, value in columns.get("tags", {}).items()}
        values["tags"] = [f"{name}={_text(f'tags.{name}', value)}" for name, value in tags.items() if value is not None]
        return values

    def _texts(self, name: str, value: Any) -> list[str]:
        """A list of texts; numbers are written out, as official files write some answers."""
        if value is None:
            return []
        if name in self.split_on:
            value = _text(name, value).split(self.split_on[name])
        items = value if isinstance(value, list) else [value]
        if all(item is None for item in items):  # test sets, whose answers are not given away
            return []
        if name in MAY_BE_BLANK:
            filled = [item for item in items if not isinstance(item, str) or item.strip()]
            items = filled if filled or name == "ocr_tokens" else items
        items = [str(item) if type(item) is int else item for item in items]
        return [_text(f"{name}[{number}]", item) for number, item in enumerate(items)]


def read_hub_copies(dataset: str, entries: Any) -> tuple[HubCopy, ...]:
    """What stands under `hub` in "specs/<dataset>.yaml".

    Raises:
        ValueError: a copy that is not described as it should be; says where.
    """
    if not isinstance(entries, list):
        raise ValueError(f"specs/{dataset}.yaml: hub should be a list, is {describe(entries)}")
    return tuple(HubCopy.read(f"specs/{dataset}.yaml: hub.{number}", entry) for number, entry in enumerate(entries))


def look_up(path: str, record: Any) -> Any:
    """What stands at a path of names; a list on the way gives a list, and nothing on the way gives None.

    Raises:
        ValueError: no such column, or it has no such part.
    """
    value = record
    for number, name in enumerate(names := path.split(".")):
        if value is None:
            return None
        if isinstance(value, list):
            if not name.isdigit():
                return [look_up(".".join(names[number:]), item) for item in value]
            if int(name) >= len(value):
                raise ValueError(f"column {path!r}: a list of {len(value)} has no item {name}")
            value = value[int(name)]
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            raise ValueError(f"no column {path!r}: found {describe(value)}")
    return value


def evaluate(expression: Expression, record: Mapping[str, Any]) -> Any:
    """The value of an expression for a row.

    Raises:
        ValueError: the row lacks a column, or holds something else than the expression needs.
    """
    if isinstance(expression, list):
        return [evaluate(part, record) for part in expression]
    if isinstance(expression, dict):
        return expression["value"] if "value" in expression else _find(expression, record)
    return _fill_in(expression, record) if "{" in expression else look_up(expression, record)


def _find(expression: dict[str, Any], record: Mapping[str, Any]) -> str | None:
    value = evaluate(expression["from"], record)
    if value is None:
        return None
    text = str(value) if type(value) is int else _text(str(expression["from"]), value)
    found = re.search(expression["pattern"], text)
    if found is None:
        raise ValueError(f"{describe(text)} does not fit {expression['pattern']!r}")
    return expression.get("format", "{}").format(found[1])


@functools.lru_cache(maxsize=256)
def _pieces(text: str) -> tuple[tuple[str, str | None, str | None], ...]:
    """(text, path after it, how to write it) of a format."""
    return tuple(piece[:3] for piece in string.Formatter().parse(text))


def _fill_in(text: str, record: Mapping[str, Any]) -> str:
    parts = []
    for literal, path, spec in _pieces(text):
        parts.append(literal)
        if path is None:
            continue
        value = look_up(path, record)
        if type(value) not in (str, int):
            raise ValueError(f"column {path!r} should be text or a whole number, is {describe(value)}")
        try:
            parts.append(format(value, spec or ""))
        except ValueError as error:
            raise ValueError(f"column {path!r} is {describe(value)}: {error}") from error
    return "".join(parts)


def _paths(expression: Expression) -> Iterator[str]:
    """The paths that an expression reads."""
    if isinstance(expression, list):
        for part in expression:
            yield from _paths(part)
    elif isinstance(expression, dict):
        if "value" not in expression:
            for part in [expression["from"]] if "from" in expression else expression.values():
                yield from _paths(part)
    elif "{" in expression:
        yield from (path for _, path, _, _ in string.Formatter().parse(expression) if path)
    else:
        yield expression


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"'{name}' should be text, is {describe(value)}")
    if not value.strip():
        raise ValueError(f"'{name}' is blank")
    return value.strip()


def _label(value: Any, choices: list[str]) -> int:
    """The index of the right choice; -1 where it is not given."""
    if value is None:
        return -1
    if isinstance(value, str) and value.strip() in choices:
        return choices.index(value.strip())
    if type(value) is not int or not -1 <= value < len(choices):
        raise ValueError(f"'label' should be one of {len(choices)} choices or its number, is {describe(value)}")
    return value


def _history(value: Any) -> list[dict[str, str]]:
    turns = [] if value is None else value
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and turn.keys() == {"question", "answer"} for turn in turns
    ):
        raise ValueError(f"'history' should be a list of question and answer, is {describe(value)}")
    return [{name: _text(f"history.{name}", turn[name]) for name in ("question", "answer")} for turn in turns]


def _mapping(place: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{place}: expected names and values, found {describe(value)}")
    return value


def _check_keys(place: str, cls: type, entry: Mapping[str, Any]) -> None:
    """Every key is a field, of the right kind where it is a text, and none is missing that has no default."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = entry.keys() - fields.keys()
    if unknown:
        raise ValueError(f"{place}: no key {sorted(unknown)[0]!r}: there are {', '.join(fields)}")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in entry and not optional:
            raise ValueError(f"{place}: {name} is missing")
        if name in entry and field.type in (str, str | None) and not isinstance(entry[name], str):
            raise ValueError(f"{place}.{name}: expected text, found {describe(entry[name])}")


def _check_expression(place: str, expression: Any) -> None:
    if isinstance(expression, list) and expression:
        for part in expression:
            _check_expression(place, part)
    elif isinstance(expression, dict):
        if expression.keys() == {"value"}:
            return
        if not {"from", "pattern"} <= expression.keys() <= {"from", "pattern", "format"}:
            raise ValueError(f"{place}: expected value, or from, pattern and format, found {describe(expression)}")
        _check_expression(place, expression["from"])
        if re.compile(expression["pattern"]).groups != 1:
            raise ValueError(f"{place}: the pattern {expression['pattern']!r} should have one group")
        expression.get("format", "{}").format("")
    elif not isinstance(expression, str) or not expression.strip():
        raise ValueError(f"{place}: expected a column or an expression, found {describe(expression)}")
    elif "{" in expression:
        parts = list(string.Formatter().parse(expression))
        if any(path is not None and (not path or kind) for _, path, _, kind in parts):
            raise ValueError(f"{place}: {expression!r} should name a column in each pair of braces, without '!'")
