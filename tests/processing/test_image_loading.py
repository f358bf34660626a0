"""Images from anywhere, and files that are damaged or hostile."""

import base64
import http.server
import io
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from instructblip.processing.image_loading import image_key, is_image_source, open_image


@pytest.fixture
def png(tiny_images):
    buffer = io.BytesIO()
    tiny_images[0].save(buffer, "PNG")
    return buffer.getvalue()


def test_every_kind_of_source_gives_the_same_picture(tiny_images, png, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png)
    encoded = base64.b64encode(png).decode()
    sources = [path, str(path), png, {"bytes": png, "path": "b.png"}, {"bytes": None, "path": str(path)}]
    for source in [*sources, encoded, f"data:image/png;base64,{encoded}", tiny_images[0]]:
        assert is_image_source(source)
        assert np.array_equal(open_image(source, "image"), tiny_images[0])


@pytest.fixture
def serve(monkeypatch):
    """Serve the given files by name on the loopback address; anything else is not found."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def address(name, content):
            files[f"/{name}"] = content
            return f"http://127.0.0.1:{server.server_port}/{name}"

        yield address
        server.shutdown()


def test_an_address_is_opened_with_the_same_care_as_a_file(serve, tiny_images, png):
    assert np.array_equal(open_image(serve("a.png", png), "image"), tiny_images[0])
    with pytest.raises(ValueError, match=r"image 0 of sample 1 \(http.*/bomb.png\) is too large"):
        open_image(serve("bomb.png", bomb(20_000, 20_000)), "image 0 of sample 1")
    with pytest.raises(ValueError, match=r"image 0 of sample 1 \(http.*/gone.png\) cannot be read: .*404"):
        open_image(serve("gone.png", None), "image 0 of sample 1")


def test_arrays_are_handed_on(tiny_images):
    for array in (np.zeros((4, 4, 3)), torch.zeros(3, 4, 4), np.zeros((1, 4, 3)), np.zeros((4, 4, 4))):
        assert is_image_source(array)
        assert open_image(array, "image") is array
    assert not is_image_source(np.zeros((2, 4, 4, 3)))
    assert not is_image_source(3)
    assert not is_image_source(tiny_images)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((0, 4, 3)), r"has no pixels: it is an array of shape \(0, 4, 3\)"),
        (torch.zeros(3, 4, 0), r"has no pixels: it is an array of shape \(3, 4, 0\)"),
        (Image.new("RGB", (4, 0)), "has no pixels: it is 4 x 0"),
        (np.full((4, 4, 3), np.nan), "is an array with a NaN or an infinity"),
        (torch.full((3, 4, 4), torch.inf), "is an array with a NaN or an infinity"),
        ({"bytes": None, "path": None}, "has neither bytes nor a path"),
        ({"bytes": None}, "has neither bytes nor a path"),
    ],
)
def test_an_image_of_nothing_is_named(processor, source, reason):
    assert is_image_source(source)
    with pytest.raises(ValueError, match=f"^image 0 of sample 1 {reason}"):
        processor([None, source], ["what", "what"])


def test_files_are_turned_upright_and_made_rgb(tmp_path):
    image = Image.new("L", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # taken with the camera on its side
    image.save(tmp_path / "side.jpg", exif=exif)
    opened = open_image(tmp_path / "side.jpg", "image")
    assert (opened.size, opened.mode) == ((2, 4), "RGB")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pictures_in_memory_are_made_rgb_as_files_are(mode):
    assert open_image(Image.new(mode, (4, 2)), "image").mode == "RGB"


def test_what_is_behind_transparency_is_shown_in_memory_as_from_a_file():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    for source in (image, buffer.getvalue()):
        assert open_image(source, "image").getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])  # modes I;16 and I
def test_sixteen_bits_are_scaled_to_eight_and_not_clipped_to_white(dtype):
    image = Image.fromarray(np.array([[0, 256, 32768, 65535]], dtype=dtype))
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    for source in (image, buffer.getvalue()):
        assert np.asarray(open_image(source, "image"))[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_eight_bits_in_a_wide_mode_stay_as_they_are():
    assert open_image(Image.fromarray(np.array([[200]], dtype=np.int32)), "image").getpixel((0, 0)) == (200,) * 3


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"image 0 of sample 1 \(.*gone.png\) does not exist"):
        open_image(tmp_path / "gone.png", "image 0 of sample 1")


def test_data_that_is_no_image_is_named(tmp_path):
    with pytest.raises(ValueError, match="image 2 of sample 7 is not an image"):
        open_image(b"GIF?", "image 2 of sample 7")
    with pytest.raises(ValueError, match=r"image 2 of sample 7 \(inside.jpg\) is not an image"):
        open_image({"bytes": b"GIF?", "path": "inside.jpg"}, "image 2 of sample 7")


def test_a_truncated_image_is_an_error_not_a_grey_area(png):
    with pytest.raises(ValueError, match="image 0 of sample 1 cannot be read"):
        open_image(png[: len(png) // 2], "image 0 of sample 1")


def test_a_lazily_opened_truncated_image_is_named_with_its_file(png, tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(png[: len(png) // 2])
    with pytest.raises(ValueError, match=r"image 0 of sample 1 \(.*cut.png\) cannot be read"):
        open_image(Image.open(path), "image 0 of sample 1")


def bomb(width, height):
    """A PNG whose header promises more than its few bytes hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    packed = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + packed


@pytest.mark.parametrize("side", [10_000, 20_000])  # PIL warns above 89 million pixels and refuses above 179 million
@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused(side):
    with pytest.raises(ValueError, match="image 0 of sample 1 is too large to be decoded safely"):
        open_image(bomb(side, side), "image 0 of sample 1")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_lazily_opened_bomb_is_refused():
    with pytest.raises(ValueError, match="image 0 of sample 1 is too large"):
        open_image(Image.open(io.BytesIO(bomb(10_000, 10_000))), "image 0 of sample 1")


def test_large_images_made_in_memory_are_not_bombs(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    image = Image.new("RGB", (8, 8))
    assert open_image(image, "image") is image


def test_formats_that_start_other_programs_are_not_opened():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(postscript)).format == "EPS"  # PIL itself would
    with pytest.raises(ValueError, match="is not an image"):
        open_image(postscript, "image")


def test_the_same_bytes_are_the_same_image_and_the_same_name_is_not(png):
    same = {"bytes": bytes(bytearray(png)), "path": "x.png"}
    assert image_key({"bytes": png, "path": "0001.png"}) == image_key(same)
    assert image_key({"bytes": b"1", "path": "0001.png"}) != image_key({"bytes": b"2", "path": "0001.png"})
