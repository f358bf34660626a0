"""Which frames of a clip are used, and what happens to files that are none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from instructblip.processing.video_frames import frame_indices, is_video_source, read_frames

VIDEOS = Path(__file__).parents[3] / "shared" / "data" / "video"


def write_clip(path, frames=10, codec="ffv1", **options):  # which is lossless
    """Frames of 32 pixels, ten a second, each one grey that says its number: 20 * number + 10."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            grey = np.full((32, 32, 3), 20 * number + 10, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def clip(tmp_path):
    """Ten frames."""
    return write_clip(tmp_path / "clip.mkv")


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


def last_frame(path):
    """Where the last frame begins in the file."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return max(packet.pos for packet in container.demux(video=0) if packet.size)


@pytest.mark.parametrize(
    ("name", "options"),
    [("clip.mkv", {}), ("clip.mp4", {"codec": "mpeg4", "movflags": "faststart"}), ("clip.avi", {"codec": "mpeg4"})],
)
@pytest.mark.parametrize("left", [0, 10])  # bytes of the last frame
def test_a_video_that_is_cut_off_is_refused_with_the_frames_that_are_left(tmp_path, name, options, left):
    path = write_clip(tmp_path / name, **options)
    assert len(read_frames(path, None, "v")) == 10
    cut = path.read_bytes()[: last_frame(path) + left]
    path.write_bytes(cut)
    reason = r"cannot be read: it is cut off, found \d+ of 10 frames"
    with pytest.raises(ValueError, match=rf"video 1 of sample 3 \(.*{name}\) {reason}"):
        read_frames(path, 4, "video 1 of sample 3")
    with pytest.raises(ValueError, match=f"video 1 of sample 3 {reason}"):
        read_frames(cut, 4, "video 1 of sample 3")


def test_a_whole_video_with_fewer_frames_than_asked_for_gives_them_all(tmp_path):
    assert numbers(read_frames(write_clip(tmp_path / "short.mkv", frames=3), 4, "v")) == [0, 1, 2]


def test_a_video_that_lacks_only_what_comes_after_its_frames_is_read(clip):
    content = clip.read_bytes()
    assert numbers(read_frames(content[:-1], 4, "v")) == [0, 2, 5, 7]


def test_a_recording_that_does_not_say_its_size_is_read_as_far_as_it_goes(clip):
    """A live recording has 2^56 - 1, "unknown", for the size of its segment."""
    content = clip.read_bytes()
    segment = content.index(b"\x18\x53\x80\x67") + 4
    content = content[:segment] + b"\x01" + b"\xff" * 7 + content[segment + 8 :]
    assert numbers(read_frames(content[: last_frame(clip)], None, "v"))[:8] == list(range(8))


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
