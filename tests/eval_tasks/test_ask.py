import base64
import io
import re

import pytest
import tiny_peers
from PIL import Image

from instructblip.eval_tasks import InstructBLIPEvalModel, ask
from instructblip.eval_tasks.instructblip_driver import InstructBLIPDriver

QUESTIONS = ["what is in the picture ?", "what color is the cat ?"]
QUICK = ["--device", "cpu", "--max_new_tokens", "4", "--num_beams", "2"]


@pytest.fixture
def releases(tiny_lm, tmp_path):
    """Folders of two models."""
    for language in ("t5", "llama"):
        lm = tiny_lm(language)
        lm.model.save_pretrained(tmp_path / language)
        lm.processor.save_pretrained(tmp_path / language)
    return [str(tmp_path / "t5"), str(tmp_path / "llama")]


@pytest.fixture
def photo(tmp_path, tiny_images):
    tiny_images[0].save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture
def prompted(monkeypatch):
    """What the processor gets: (texts, pictures of each)."""
    seen = []

    def spy(driver, prompts, images):
        result = inputs(driver, prompts, images)
        text = driver.processor.tokenizer.decode(result["input_ids"][0], skip_special_tokens=True)
        seen.append((text, len(prompts[0].references)))
        return result

    inputs = InstructBLIPDriver.inputs
    monkeypatch.setattr(InstructBLIPDriver, "inputs", spy)
    return seen


@pytest.fixture
def said(monkeypatch):
    """Makes models answer with these texts, one after the other."""
    answers = []
    monkeypatch.setattr(InstructBLIPDriver, "generate", lambda driver, inputs, settings: [answers.pop(0)])
    return answers


def shown(capsys):
    """The answers' columns, line by line."""
    return [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("│", "┃"))
    ]


def test_answers_stand_side_by_side_turn_by_turn(releases, photo, capsys):
    ask.main([*QUICK, "--models", *releases, "--image", photo, *QUESTIONS])
    output = capsys.readouterr().out
    assert re.search(r"┃ t5 +┃ llama +┃", output)
    assert output.index(QUESTIONS[0]) < output.index(QUESTIONS[1])
    answers = []
    for release in releases:
        lm = InstructBLIPEvalModel(release, device="cpu")
        inputs = lm.processor(images=[[photo]], text=[QUESTIONS[0]], padding=True, return_tensors="pt")
        settings = dict(num_beams=2, max_new_tokens=4, repetition_penalty=1.5, do_sample=False)
        answers.append(lm.processor.batch_decode(lm.model.generate(**inputs, **settings), skip_special_tokens=True)[0])
    assert answers[0] != answers[1]
    row = next(line for line in output.splitlines() if line.startswith("│"))
    assert [cell.strip() for cell in row.split("│")[1:-1]] == answers


def test_each_model_sees_its_own_answers(releases, photo, prompted, said, capsys):
    said += ["a cat", "red", "a dog", "blue"]
    ask.main([*QUICK, "--models", *releases, "--image", photo, *QUESTIONS])
    first, second = QUESTIONS
    assert prompted == [
        (first, 1),
        (f"{first} a cat {second}", 1),
        (first, 1),
        (f"{first} a dog {second}", 1),
    ]
    rows = shown(capsys)
    assert [row for row in rows if row[0] in ("a cat", "red")] == [["a cat", "a dog"], ["red", "blue"]]


def test_there_may_be_several_pictures_or_none(releases, photo, prompted, said):
    said += ["yes"] * 2
    ask.main([*QUICK, "--models", releases[0], "--image", photo, "--image", photo, "is there a cat ?"])
    ask.main([*QUICK, "--models", releases[0], "--", "is there a cat ?"])
    assert [pictures for _, pictures in prompted] == [2, 0]


def test_questions_may_come_line_by_line(releases, photo, prompted, said, monkeypatch, capsys, tmp_path):
    said += ["a cat", "a dog", "red", "blue"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTIONS[0]}\n\n{QUESTIONS[1]}\n"))
    ask.main([*QUICK, "--models", *releases, "--image", photo, "--html", str(tmp_path / "page.html")])
    assert [text for text, _ in prompted][2:] == [
        f"{QUESTIONS[0]} a cat {QUESTIONS[1]}",
        f"{QUESTIONS[0]} a dog {QUESTIONS[1]}",
    ]
    assert ["red", "blue"] in shown(capsys)
    assert "red" in (tmp_path / "page.html").read_text()


def test_another_model_is_asked_through_its_chat_template(
    tmp_path, photo, request, said, releases, capsys, monkeypatch
):
    model, processor = tiny_peers.llava(lambda name: request.getfixturevalue(f"{name}_tokenizer"))
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    texts = []
    render = type(processor).apply_chat_template
    monkeypatch.setattr(
        type(processor),
        "apply_chat_template",
        lambda *arguments, **kwargs: texts.append(render(*arguments, **kwargs)) or texts[-1],
    )
    said += ["a cat", "red"]
    models = [releases[0], str(tmp_path / "llava")]
    ask.main([*QUICK, "--models", *models, "--image", photo, *QUESTIONS])
    first, second = (text for text in texts if text.endswith("ASSISTANT:"))
    assert first.startswith("USER: <image>")
    assert second.startswith(first.removesuffix("ASSISTANT:"))
    assert second.endswith(f"USER: {QUESTIONS[1]} ASSISTANT:")


def test_the_page_stands_alone_and_shows_texts_as_they_are(releases, photo, said, tmp_path, capsys):
    said += ["<b>[red]cat[/red]</b>", "", "a dog", "blue"]
    page = tmp_path / "page.html"
    ask.main([*QUICK, "--models", *releases, "--image", photo, "--html", str(page), "is a < b ?", "no ?"])
    assert "(nothing)" in capsys.readouterr().out  # for an empty answer, as on the page
    written = page.read_text()
    assert "&lt;b&gt;[red]cat[/red]&lt;/b&gt;" in written
    assert "is a &lt; b ?" in written
    assert "(nothing)" in written
    assert "<script" not in written
    assert not re.search('(src|href)="(?!data:)', written)
    picture = re.search('data:image/jpeg;base64,([^"]+)', written)[1]
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (28, 28)
    assert [file.name for file in tmp_path.glob("page*")] == ["page.html"]


def test_answers_cannot_command_the_terminal(releases, said, capsys):
    said += ["[bold]red[/bold] \x1b[31mcat\x1b]0;title\x07"]
    ask.main([*QUICK, "--models", releases[0], "--", "what ?"])
    output = capsys.readouterr().out
    assert "[bold]red[/bold]" in output
    assert "\x1b[31m" not in output
    assert "\x07" not in output


def test_sampling_repeats_with_its_seed(releases, photo, capsys):
    def sampled(seed):
        options = ["--temperature", "5", "--top_p", "1", "--seed", seed, "--repetition_penalty", "1"]
        ask.main([*QUICK, *options, "--models", releases[1], "--image", photo, "what ?"])
        return shown(capsys)[-1]

    one, other, again = sampled("1"), sampled("2"), sampled("1")
    assert one == again != other


def test_settings_are_lavis_own_unless_others_are_given(releases, monkeypatch):
    given = []
    monkeypatch.setattr(InstructBLIPDriver, "generate", lambda driver, inputs, settings: given.append(settings) or [""])
    model = ["--device", "cpu", "--models", releases[0]]
    ask.main([*model, "--", "what ?"])
    ask.main([*model, "--num_beams", "1", "--temperature", "0.5", "--", "what ?"])
    assert given == [
        dict(num_beams=5, max_new_tokens=256, repetition_penalty=1.5, length_penalty=1.0, do_sample=False),
        dict(num_beams=1, max_new_tokens=256, repetition_penalty=1.5, do_sample=True, temperature=0.5, top_p=0.9),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "a/b", "What is this?"], "'What is this\\?' is neither a folder nor a Hub id: write questions"),
        (["--models", "a/b", "--image", "gone.jpg", "What?"], r"picture \(gone.jpg\) does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(arguments, message):
    with pytest.raises(ValueError, match=message):
        ask.main(arguments)


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be loaded: "):
        ask.main(["--models", str(tmp_path), "--", "what ?"])
