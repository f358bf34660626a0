"""Which frames of a clip are used, and what happens to files that are none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from instructblip.processing.video_frames import frame_indices, is_video_source, read_frames

VIDEOS = Path(__file__).parents[3] / "shared" / "data" / "video"


@pytest.fixture
def clip(tmp_path):
    """Ten frames of 32 pixels, each one grey that says its number: 20 * number + 10."""
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)  # lossless
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(10):
            grey = np.full((32, 32, 3), 20 * number + 10, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames):
    return [round((np.asarray(frame).mean() - 10) / 20) for frame in frames]


@pytest.mark.parametrize(
    ("total", "num_frames", "expected"),
    [
        (8, 4, [0, 2, 4, 6]),
        (10, 4, [0, 2, 5, 7]),  # LAVIS: int of 0, 2.5, 5, 7.5
        (100, 4, [0, 25, 50, 75]),
        (4, 4, [0, 1, 2, 3]),
        (3, 4, [0, 1, 2]),
        (1, 4, [0]),
        (7, 1, [0]),
    ],
)
def test_frames_are_the_first_of_equal_parts(total, num_frames, expected):
    assert frame_indices(total, num_frames) == expected


def test_a_file_gives_its_uniform_frames(clip):
    frames = read_frames(clip, 4, "video 0 of sample 0")
    assert numbers(frames) == [0, 2, 5, 7]
    assert frames[0].mode == "RGB"
    assert frames[0].size == (32, 32)


def test_a_path_a_string_and_bytes_give_the_same_frames(clip):
    expected = [frame.tobytes() for frame in read_frames(clip, 4, "v")]
    assert [frame.tobytes() for frame in read_frames(str(clip), 4, "v")] == expected
    assert [frame.tobytes() for frame in read_frames(clip.read_bytes(), 4, "v")] == expected


def test_every_frame_comes_when_none_is_picked(clip):
    assert numbers(read_frames(clip, None, "v")) == list(range(10))


def test_a_header_that_lies_about_the_count_is_not_believed(clip, monkeypatch):
    monkeypatch.setattr("instructblip.processing.video_frames._declared_frames", lambda av, source: 40)
    assert numbers(read_frames(clip, 4, "v")) == [0, 2, 5, 7]


@pytest.mark.parametrize("make", [list, np.stack, lambda frames: torch.from_numpy(np.stack(frames))])
def test_decoded_frames_are_sampled_by_the_same_rule(make):
    frames = [np.full((4, 4, 3), 20 * number + 10, dtype=np.uint8) for number in range(10)]
    assert numbers(read_frames(make(frames), 4, "v")) == [0, 2, 5, 7]


@pytest.mark.parametrize(
    ("name", "size"), [("nasa_13013.mp4", (480, 270)), ("h265_video.mp4", (128, 128)), ("av1_video.mkv", (640, 360))]
)
def test_real_files_of_three_codecs_decode(name, size):
    pytest.importorskip("av")
    if not VIDEOS.is_dir():
        pytest.skip("no shared video files beside this checkout")
    frames = read_frames(VIDEOS / name, 4, "v")
    assert [frame.size for frame in frames] == [size] * 4
    assert len({frame.tobytes() for frame in frames}) == 4


def test_the_stream_that_a_player_would_show_is_used():
    """nasa_13013.mp4 begins with a smaller stream; its main one is 480 pixels wide."""
    av = pytest.importorskip("av")
    if not VIDEOS.is_dir():
        pytest.skip("no shared video files beside this checkout")
    with av.open(str(VIDEOS / "nasa_13013.mp4")) as container:
        assert container.streams.video[0].width != 480
    assert read_frames(VIDEOS / "nasa_13013.mp4", 1, "v")[0].size[0] == 480


@pytest.mark.parametrize(
    "content", [b"", b"no video", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mkv\n#EXT-X-ENDLIST\n"]
)
def test_a_file_that_is_no_video_is_named(clip, content):
    path = clip.with_name("bad.mp4")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"video 1 of sample 3 \(.*bad.mp4\) cannot be read"):
        read_frames(path, 4, "video 1 of sample 3")
    with pytest.raises(ValueError, match="video 1 of sample 3 cannot be read"):
        read_frames(content, 4, "video 1 of sample 3")


def test_a_playlist_does_not_open_other_files(clip):
    path = clip.with_name("list.txt")
    path.write_text("ffconcat version 1.0\nfile clip.mkv\n")
    with pytest.raises(ValueError, match="cannot be read"):
        read_frames(path, 4, "v")


def test_a_missing_file_is_named(tmp_path):
    pytest.importorskip("av")
    with pytest.raises(ValueError, match=r"video 0 of sample 2 \(.*gone.mp4\) does not exist"):
        read_frames(tmp_path / "gone.mp4", 4, "video 0 of sample 2")


def test_frames_beyond_the_pixel_limit_are_refused_before_decoding(clip, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="cannot be read: frames of 32 x 32 pixels exceed .*MAX_IMAGE_PIXELS = 1000"):
        read_frames(clip, 4, "v")


def test_a_clip_without_frames_is_refused():
    with pytest.raises(ValueError, match="video 0 of sample 1 has no frames"):
        read_frames(np.zeros((0, 4, 4, 3)), 4, "video 0 of sample 1")


def test_a_missing_pyav_says_what_to_install(clip, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match="Reading video files needs PyAV: pip install av"):
        read_frames(clip, 4, "v")


def test_what_counts_as_one_video(tiny_images):
    assert is_video_source("a.mp4")
    assert is_video_source(b"...")
    assert is_video_source(tiny_images)
    assert is_video_source(np.zeros((2, 4, 4, 3)))
    assert not is_video_source(np.zeros((4, 4, 3)))
    assert not is_video_source([tiny_images])
    assert not is_video_source(["a.mp4", "b.mp4"])
    assert not is_video_source([])
