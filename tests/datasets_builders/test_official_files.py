import gzip
import json

import pytest

from instructblip.datasets_builders.official_files import (
    choices_field,
    index_field,
    read_json,
    read_json_items,
    read_json_lines,
    read_json_members,
    text_field,
)

VALUE = {"07": {"answer": "yes", "boxes": [[1, 2.5], []]}, "8": None, "": 123456, "é\n": "a } b", "z": True}


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 3])
def test_members_come_in_order_whatever_the_block(tmp_path, block, indent):
    path = tmp_path / "members.json"
    path.write_text(json.dumps(VALUE, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    members = list(read_json_members(str(path), block))
    assert members == [(row, *member) for row, member in enumerate(VALUE.items(), start=1)]


def test_a_key_that_comes_twice_is_given_twice(tmp_path):
    path = tmp_path / "members.json"
    path.write_text('{"1": "a", "1": "b"}')
    assert list(read_json_members(str(path))) == [(1, "1", "a"), (2, "1", "b")]


def test_an_object_may_be_empty(tmp_path):
    path = tmp_path / "members.json"
    path.write_text(" { } ")
    assert list(read_json_members(str(path))) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an object, found 'nothing' at its start"),
        (b"[1]", r"expected an object, found '\[' at its start"),
        (b'{"1": {"a": 2}, "2": {"a": }}', r"row 2: not JSON \(Expecting value\)"),
        (b'{"1": {"a": 2} "2": 3}', r"row 2: not JSON \(expected ',', found '\"'\)"),
        (b'{"1": 2', r"row 2: not JSON \(expected ',', found 'the end'\)"),
        (b'{"1" 2}', r"row 1: not JSON \(expected ':', found '2'\)"),
        (b'{"1": 2,}', r"row 2: not JSON \(Expecting value\)"),
        (b'{"1": 2}}', "after row 1: more text behind the object"),
        (b"{3: 4}", "row 1: expected a key, found int 3"),
        (b'{"1": 2, "3": "\xff"}', "row [12]: not a JSON file"),
        (b'{"1": ' + b"[" * 100_000, "row 1: not a JSON file"),
    ],
)
def test_a_file_that_holds_no_object_is_named_with_the_row(tmp_path, content, message):
    path = tmp_path / "members.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"members\.json.*{message}"):
        list(read_json_members(str(path)))


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_items_of_a_list_come_in_order_whatever_the_block(tmp_path, block):
    path = tmp_path / "items.json"
    path.write_text(json.dumps([VALUE, 12, "a ] b", []], indent=1))
    assert list(read_json_items(str(path), block)) == [(1, VALUE), (2, 12), (3, "a ] b"), (4, [])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"1": 2}', "expected a list, found '{' at its start"),
        ('[{"a": 1}, {"b" 2}]', r"row 2: not JSON \(Expecting ':' delimiter\)"),
        ('[{"a": 1}, {"b": 2}', r"row 3: not JSON \(expected ',', found 'the end'\)"),
        ("[1] [2]", "after row 1: more text behind the list"),
    ],
)
def test_a_file_that_holds_no_list_is_named_with_the_row(tmp_path, content, message):
    path = tmp_path / "items.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"items\.json.*{message}"):
        list(read_json_items(str(path)))


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
def test_items_of_a_list_under_a_key_are_the_same_wherever_it_stands(tmp_path, block):
    path = tmp_path / "items.json"
    for members in ({"info": VALUE, "data": [VALUE, 12]}, {"data": [VALUE, 12], "info": VALUE, "licence": 4}):
        path.write_text(json.dumps(members, indent=1))
        assert list(read_json_items(str(path), block, key="data")) == [(1, VALUE), (2, 12)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected an object with 'data', found '\\[' at its start"),
        ('{"info": [1]}', "expected an object with 'data', found none in it"),
        ('{"data": {"1": 2}}', "expected a list, found '{' under 'data'"),
        ('{"data": [1], "info": {', "row 2: not JSON"),
        ('{"data": [1]', r"row 2: not JSON \(expected ',', found 'the end'\)"),
        ('{"info": 1 "data": [1]}', r"row 1: not JSON \(expected ',', found '\"'\)"),
        ('{"data": [1]} {}', "after row 1: more text behind the list"),
    ],
)
def test_a_file_that_holds_no_list_under_the_key_is_named(tmp_path, content, message):
    path = tmp_path / "items.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"items\.json.*{message}"):
        list(read_json_items(str(path), key="data"))


def test_text_may_be_blank_but_not_absent():
    assert text_field({"hint": " \n"}, "hint") == ""
    assert text_field({"hint": " Look. "}, "hint") == "Look."
    with pytest.raises(ValueError, match="'hint' is missing"):
        text_field({}, "hint")
    with pytest.raises(ValueError, match="'hint' should be str, is NoneType None"):
        text_field({"hint": None}, "hint")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("ab", "'choices' should be list, is str 'ab'"),
        ([], "'choices' is empty"),
        (["a", 3], r"'choices\[1\]' should be str, is int 3"),
        (["a", " "], r"'choices\[1\]' is blank"),
    ],
)
def test_bad_choices_are_named(choices, message):
    with pytest.raises(ValueError, match=message):
        choices_field({"choices": choices}, "choices")


def test_choices_lose_white_space_around_them():
    assert choices_field({"choices": ["a ", "b c"]}, "choices") == ["a", "b c"]


@pytest.mark.parametrize(("value", "message"), [(3, "is 3: expected 0 to 2"), (-1, "is -1"), ("1", "should be int")])
def test_an_index_outside_the_list_is_named(value, message):
    with pytest.raises(ValueError, match=f"'answer' {message}"):
        index_field({"answer": value}, "answer", 3)


def test_a_mark_of_byte_order_in_front_is_no_fault(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf[{"a": 1}]')  # as Windows writes
    assert read_json(str(path)) == [{"a": 1}]
    assert list(read_json_items(str(path))) == [(1, {"a": 1})]


def test_a_number_too_long_to_read_is_named_with_its_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(f"[1, {'9' * 5000}]")
    with pytest.raises(ValueError, match=r"a\.json: not a JSON file \(Exceeds the limit"):
        read_json(str(path))
    with pytest.raises(ValueError, match=r"a\.json, row 2: not JSON \(Exceeds the limit"):
        list(read_json_items(str(path)))


def test_lines_that_end_within_a_gzip_file_are_named_with_it(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress("".join(f'{{"row": {row}}}\n' for row in range(1000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: not a JSON-lines file \(Compressed file ended"):
        list(read_json_lines(str(path)))
