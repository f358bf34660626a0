import io

import datasets
import numpy as np
import pytest

from instructblip.eval_tasks.images import keep_rows, read_image


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def rows_of(**columns):
    features = {
        "image": datasets.Image(),
        "images": datasets.List(datasets.Image()),
        "number": datasets.Value("int64"),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features({name: features[name] for name in columns}))


def same(first, second):
    return np.array_equal(np.asarray(first), np.asarray(second))


def test_a_path_a_cell_and_a_picture_are_all_read(tmp_path, tiny_images):
    path = tmp_path / "a.png"
    tiny_images[0].save(path)
    assert same(read_image(str(path)), tiny_images[0])
    assert same(read_image({"path": str(path), "bytes": None}), tiny_images[0])
    assert same(read_image({"path": "gone.png", "bytes": encoded(tiny_images[1])}), tiny_images[1])
    assert same(read_image(tiny_images[2]), tiny_images[2])


def test_a_kept_row_is_read_by_its_reference(tiny_images):
    rows = rows_of(image=[{"path": None, "bytes": encoded(image)} for image in tiny_images[:3]])
    assert all(same(read_image(names[0]), image) for names, image in zip(keep_rows(rows), tiny_images, strict=False))


def test_several_pictures_of_a_row_keep_their_order_also_after_a_shuffle(tiny_images):
    cells = [{"path": None, "bytes": encoded(image)} for image in tiny_images]
    rows = rows_of(images=[[cells[0], cells[1]], [], [cells[2]]], number=[0, 1, 2]).select([2, 0, 1])
    references = keep_rows(rows)
    assert [len(names) for names in references] == [1, 2, 0]
    assert same(read_image(references[0][0]), tiny_images[2])
    assert same(read_image(references[1][1]), tiny_images[1])


def test_keeping_rows_decodes_no_picture():
    keep_rows(rows_of(image=[{"path": None, "bytes": b"not a picture"}]))


def test_rows_without_pictures_are_refused():
    with pytest.raises(ValueError, match=r"columns \['number'\]: expected `image` or `images`"):
        keep_rows(rows_of(number=[1]))


def test_a_broken_picture_is_named(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"cut\.jpg"):
        read_image(str(tmp_path / "cut.jpg"))
    reference = keep_rows(rows_of(image=[{"path": None, "bytes": b"not a picture"}]))[0][0]
    with pytest.raises(ValueError, match=reference):
        read_image(reference)


def test_a_row_that_this_process_has_not_loaded_is_named():
    with pytest.raises(ValueError, match="row:beef:3:0 belongs to a dataset that this process has not loaded"):
        read_image("row:beef:3:0")
