import io
import re
import tarfile
import time

import pytest

from instructblip.datasets_builders import tar_files
from instructblip.datasets_builders.official_files import BadRowError
from instructblip.datasets_builders.tar_files import TarSample, read_samples

LIMITS = {"jpg": 100, "json": 100, "txt": 100}


def member(name, content=b"a", **fields):
    """A member with the header that WebDataset writes: a time with a fraction, and so an extended header before it."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mtime = time.time()
    for field, value in fields.items():
        setattr(header, field, value)
    return header, content


def sample(key):
    return [member(f"{key}.jpg", b"p" * 90), member(f"{key}.json", b"{}"), member(f"{key}.txt", b"a cat")]


def tar(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as file:
        for header, content in members:
            file.addfile(header, io.BytesIO(content))
    return str(path)


def read(path):
    return list(read_samples(path, LIMITS))


def faults(path):
    return [f"{item.row}: {item.reason}" for item in read(path) if isinstance(item, BadRowError)]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_samples_are_members_of_one_name(tmp_path, format):
    path = tar(tmp_path / "0.tar", [*sample("000000007"), *sample("000000003")], format)
    parts = {"jpg": b"p" * 90, "json": b"{}", "txt": b"a cat"}
    assert read(path) == [TarSample(1, "000000007", parts), TarSample(2, "000000003", parts)]


def test_folders_and_other_members_are_passed_over(tmp_path):
    folder = member("part", b"", type=tarfile.DIRTYPE)
    members = [folder, member("./part/1.JPG", b"p"), member("./part/1.npy", b"x" * 5000), member("./part/1.txt")]
    path = tar(tmp_path / "0.tar", members)
    assert read(path) == [TarSample(1, "part/1", {"jpg": b"p", "txt": b"a"})]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([member("2.jpg"), member("2.jpg")], "2: member '2.jpg' comes twice"),
        ([member("2.jpg", b"p" * 101)], "2: member '2.jpg' has 101 bytes: at most 100 are read"),
        ([member("2.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "2: member '2.jpg' is a link"),
        ([member("2.jpg", b"", type=tarfile.LNKTYPE, linkname="1.jpg")], "2: member '2.jpg' is a link"),
        ([member("2.jpg", b"", type=tarfile.CHRTYPE)], "2: member '2.jpg' is no plain file"),
        ([member("2.jpg", b"", type=tarfile.FIFOTYPE)], "2: member '2.jpg' is no plain file"),
        ([member("/2.jpg")], "2: member '/2.jpg' has a name that no sample has"),
        ([member("a/../2.jpg")], "2: member 'a/../2.jpg' has a name that no sample has"),
        ([member("2\n.jpg")], "2: member '2\\n.jpg' has a name that no sample has"),
        ([member("é.jpg")], "has a name of more than 100 bytes or not in ASCII"),
        ([member("n" * 120 + ".jpg")], "has a name of more than 100 bytes or not in ASCII"),
    ],
)
def test_a_bad_member_spoils_its_sample_only(tmp_path, broken, message):
    path = tar(tmp_path / "0.tar", [*sample("1"), *broken, *sample("9")])
    assert [item.key for item in read(path) if isinstance(item, TarSample)] == ["1", "9"]
    (fault,) = faults(path)
    assert message in fault


def test_a_sample_that_comes_again_is_named(tmp_path):
    path = tar(tmp_path / "0.tar", [*sample("1"), *sample("2"), *sample("1")])
    assert faults(path) == ["3: sample '1' again, first in row 1"]


def test_a_name_that_is_no_text_spoils_its_sample_only(tmp_path):
    path = tar(tmp_path / "0.tar", [member("2\udcff.jpg"), *sample("9")], tarfile.GNU_FORMAT)
    assert faults(path) == ["1: member '2\\udcff.jpg' has a name that no sample has"]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_cut_anywhere_gives_whole_samples_and_one_fault(tmp_path, format):
    whole = tmp_path / "whole.tar"
    tar(whole, [*sample("1"), *sample("2")], format)
    content = whole.read_bytes()
    complete = {(item.key, *item.parts.items()) for item in read(str(whole))}
    end = 2 * 3 * 2 * 512
    for cut in range(0, end + 512, 128):
        path = tmp_path / "cut.tar"
        path.write_bytes(content[:cut])
        items = read(str(path))
        assert {(item.key, *item.parts.items()) for item in items if isinstance(item, TarSample)} <= complete
        assert len(faults(str(path))) == 1, cut
        assert str(path) in str(items[-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "1: the tar is empty; this sample and what follows it is lost"),
        (lambda content: b"\x1f\x8b" + content, "1: no tar: the header at byte 0 is none"),
        (lambda content: content[:2048] + b"\xff" + content[2049:], "damaged: the header at byte 2048 is none"),
        (lambda content: content + content, "1: the tar goes on behind its end mark, as joined tars do: split it"),
    ],
)
def test_a_damaged_tar_is_not_taken_for_a_short_one(tmp_path, damage, message):
    path = tmp_path / "0.tar"
    tar(path, sample("1"), tarfile.GNU_FORMAT)
    path.write_bytes(damage(path.read_bytes()))
    (fault,) = faults(str(path))
    assert message in fault


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"comment": "x" * 9000}, "an extended header of 90.. bytes: at most 8192 are read"),
        ({"size": "99999999999"}, "a member of more than 8 GiB, or one with holes"),
        ({"GNU.sparse.major": "1"}, "a member of more than 8 GiB, or one with holes"),
    ],
)
def test_hostile_extended_headers_end_the_reading(tmp_path, fields, message):
    header, content = member("2.jpg")
    header.pax_headers = fields
    path = tar(tmp_path / "0.tar", [*sample("1"), (header, content), *sample("9")])
    (fault,) = faults(path)
    assert re.search(message, fault)
    assert [item.row for item in read(path) if isinstance(item, TarSample)] == []


def test_no_more_than_one_sample_is_held(tmp_path, monkeypatch):
    """Counts the contents that the reader made and that are still there."""
    alive, most = 0, 0

    class Content(bytes):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def read_content(member):
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return Content(member.file.read(member.size))

    monkeypatch.setattr(tar_files._Member, "read", read_content)
    tars = [
        tar(tmp_path / f"{number}.tar", [part for key in range(50) for part in sample(f"{number}{key:08d}")])
        for number in range(3)
    ]
    rows = 0
    for path in tars:
        for item in read_samples(path, LIMITS):
            assert set(item.parts) == {"jpg", "json", "txt"}
            rows += 1
    assert rows == 150
    assert most <= 6  # of the sample given out, and of the next while it is made


def test_what_is_passed_over_is_not_read(tmp_path):
    """A tar that says it holds a terabyte is left within a millisecond, not read through."""
    path = tmp_path / "0.tar"
    tar(path, sample("1"), tarfile.GNU_FORMAT)
    header, _ = member("2.jpg")
    header.size = 2**40
    path.write_bytes(path.read_bytes()[: 6 * 512] + header.tobuf(tarfile.GNU_FORMAT))
    assert faults(str(path)) == ["2: the tar is cut off: it has no end mark; this sample and what follows it is lost"]
