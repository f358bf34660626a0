from pathlib import Path

import pytest

from instructblip.eval_tasks.whole_files import write_whole


def test_an_earlier_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    write_whole(file, "before")
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, text, **kwargs: write(path, text[:3], **kwargs) and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_whole(file, "afterwards")
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_half_a_character_is_escaped(tmp_path):
    write_whole(tmp_path / "page.html", "é \ud83d")
    assert (tmp_path / "page.html").read_text("utf-8") == "é \\ud83d"
