"""Training batches: prompts apart from answers, images once, samples named when they are wrong."""

import pickle

import pytest
import torch

from instructblip import InstructBLIPCollator
from instructblip.processing.collator import bucket


@pytest.fixture
def collate(processor):
    return InstructBLIPCollator(processor)


def sample(image, instruction="what is this", response="cat", **more):
    return {"image": image, "instruction": instruction, "response": response, **more}


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_a_batch_is_what_the_processor_makes_of_prompts_and_answers(make_processor, tiny_images, language):
    processor = make_processor(language)
    batch = InstructBLIPCollator(processor)([sample(tiny_images[0]), sample(tiny_images[1], "what", "red dog")])
    expected = processor(tiny_images[:2], ["what is this", "what"], answers=["cat", "red dog"], pad_to_multiple_of=8)
    assert set(batch) - set(expected) == {"sizes"}
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_the_response_reaches_the_labels_only(make_processor, tiny_images, language):
    """known_defects A1: nothing that the Q-Former or a T5 encoder reads depends on the answer."""
    collate = InstructBLIPCollator(make_processor(language))
    one, other = collate([sample(tiny_images[0], response="red")]), collate([sample(tiny_images[0], response="blue")])
    assert not torch.equal(one["labels"], other["labels"])
    read = ["qformer_input_ids", "qformer_attention_mask", *(["input_ids"] if language == "t5" else [])]
    assert all(torch.equal(one[name], other[name]) for name in read)
    if language == "llama":
        learned = one["labels"] != -100
        assert torch.equal(one["input_ids"][~learned], other["input_ids"][~learned])


def test_lengths_are_multiples_of_eight(collate, tiny_images):
    batch = collate([sample(tiny_images[0]), sample(tiny_images[1], "what is the color of this red cat", "yes")])
    assert all(batch[name].shape[1] % 8 == 0 for name in ("input_ids", "labels", "qformer_input_ids"))


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_sizes_count_what_is_not_padding(make_processor, tiny_images, language):
    collate = InstructBLIPCollator(make_processor(language))
    batch = collate([sample(tiny_images[0]), sample(None, "what", "red dog")])
    assert batch["sizes"] == {
        "tokens": batch["attention_mask"].sum(),
        "longest": batch["attention_mask"].sum(dim=1).max(),
        "supervised": (batch["labels"] != -100).sum(),
        "uses": 1,
    }
    frames = {"images": tiny_images[:3], "instruction": "what", "response": "cat"}
    assert collate([sample(tiny_images[0]), frames])["sizes"]["uses"] == 4
    assert collate([sample(None)])["sizes"]["uses"] == 0


def test_buckets_are_powers_of_two_or_parts_of_the_way_between():
    assert [bucket(count) for count in (0, 1, 2, 3, 8, 9, 65)] == [0, 1, 2, 4, 8, 16, 128]
    assert [bucket(count, 4) for count in (0, 1, 8, 9, 15, 17, 21, 63, 65, 97)] == [
        0,
        1,
        8,
        10,
        16,
        20,
        24,
        64,
        80,
        112,
    ]
    assert all(count <= bucket(count, 4) <= 1.25 * count for count in range(1, 5000))


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_bucketed_batches_have_few_shapes_and_the_same_content(make_processor, tiny_images, language):
    collate = InstructBLIPCollator(make_processor(language))
    in_buckets = InstructBLIPCollator(make_processor(language), bucketed=True)
    shapes, exact_shapes = set(), set()
    for words in range(1, 60):
        rows = [sample(tiny_images[i], " ".join(["what"] * (words + i)), "cat " * (1 + words % 7)) for i in range(5)]
        batch, expected = in_buckets(rows), collate(rows)
        for found, into in ((batch, shapes), (expected, exact_shapes)):
            into.add(
                (
                    *(found[name].shape[-1] for name in ("input_ids", "labels", "qformer_input_ids")),
                    *(found["sizes"][name] for name in ("tokens", "supervised", "uses")),
                )
            )
        for name in ("input_ids", "attention_mask", "labels", "qformer_input_ids", "qformer_attention_mask"):
            length = expected[name].shape[1]
            assert torch.equal(batch[name][:, :length], expected[name])
            assert batch[name].shape[1] <= in_buckets.processor.qformer_max_length or not name.startswith("qformer")
            assert (batch[name][:, length:] == (-100 if name == "labels" else 0)).all()
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert all(size >= expected["sizes"][name] for name, size in batch["sizes"].items())
        assert batch["sizes"]["tokens"] <= batch["input_ids"].numel()
        assert batch["sizes"]["supervised"] <= batch["labels"].numel()
    assert len(shapes) < 0.7 * len(exact_shapes)


def test_a_bucket_of_images_repeats_the_last_one_which_nobody_uses(processor, tiny_images):
    rows = [{**sample(None), "images": [*tiny_images, tiny_images[0].rotate(90)]}]
    batch = InstructBLIPCollator(processor, bucketed=True)(rows)
    assert len(batch["pixel_values"]) == 10
    assert torch.equal(batch["pixel_values"][9], batch["pixel_values"][8])
    assert batch["image_index"].tolist() == [list(range(9))]
    assert batch["sizes"]["uses"] == 9  # not 10: there is no tenth place


def test_samples_with_the_same_image_id_share_its_pixels(collate, tiny_images):
    copies = [tiny_images[0].copy() for _ in range(3)]
    rows = [sample(image, image_id="coco/1") for image in copies]
    batch = collate([*rows, sample(tiny_images[1], image_id="coco/2")])
    assert batch["pixel_values"].shape[0] == 2
    assert batch["image_index"].tolist() == [[0], [0], [0], [1]]


def test_samples_without_image_id_share_the_same_path_object_or_bytes(collate, tiny_images, tmp_path):
    path = tmp_path / "a.png"
    tiny_images[0].save(path)
    data = path.read_bytes()
    sources = [str(path), {"bytes": None, "path": str(path)}, {"bytes": data, "path": "a.png"}]
    batch = collate([sample(source) for source in [*sources, {"bytes": bytes(bytearray(data)), "path": "b.png"}]])
    assert batch["image_index"].tolist() == [[0], [0], [1], [1]]
    assert collate([sample(tiny_images[0])] * 2)["image_index"].tolist() == [[0], [0]]


def test_several_images_share_by_their_own_ids(collate, tiny_images):
    first, second, third = tiny_images[:3]
    base = {"instruction": "what", "response": "cat"}
    batch = collate(
        [
            {**base, "images": [first, second], "image_ids": ["a", "b"]},
            {**base, "images": [third, first.copy()], "image_ids": ["c", "a"]},
            {**base, "image": second.copy(), "image_id": "b"},
        ]
    )
    assert batch["image_index"].tolist() == [[0, 1], [2, 0], [1, -1]]


def test_frames_of_one_clip_share_by_the_clips_id(collate, tiny_images):
    base = {"instruction": "what", "response": "cat", "image_id": "clip/1"}
    batch = collate([{**base, "images": tiny_images[:2]}, {**base, "images": [i.copy() for i in tiny_images[:2]]}])
    assert batch["image_index"].tolist() == [[0, 1], [0, 1]]


def test_embeddings_stand_in_for_images(collate, tiny_images):
    embeds = torch.randn(2, 5, 8)
    base = {"instruction": "what", "response": "cat"}
    batch = collate(
        [
            {**base, "image_embeds": embeds[0], "image_id": "a"},
            {**base, "image_embeds": embeds[0].clone(), "image_id": "a"},
            {**base, "image_embeds": embeds},
            {**base, "image": None},
        ]
    )
    assert batch["image_embeds"].shape == (3, 5, 8)
    assert batch["image_index"].tolist() == [[0, -1], [0, -1], [1, 2], [-1, -1]]
    assert "pixel_values" not in batch
    with pytest.raises(ValueError, match="some samples of the batch have image_embeds and others images"):
        collate([{**base, "image_embeds": embeds[0]}, sample(tiny_images[0])])


def test_text_only_batches_have_no_pixels(collate):
    assert "pixel_values" not in collate([sample(None), sample(None)])


def test_history_stands_in_front_of_the_instruction(collate, words):
    batch = collate([sample(None, history=[{"question": "what is this ?", "answer": "cat"}], instruction="what color")])
    prompt = "<s> what is this ? cat what color"
    assert batch["input_ids"][0, :8].tolist() == words(collate.processor, prompt)
    assert batch["labels"][0, :8].tolist() == [-100] * 8


def test_long_prompts_and_responses_are_cut_as_in_lavis(collate, tiny_images):
    batch = collate([sample(tiny_images[0], "what is " * 100, "cat dog " * 200)])
    learned = batch["labels"][0] != -100
    assert learned.sum() == 256
    assert batch["labels"][0][learned][-1] == collate.processor.tokenizer.eos_token_id
    assert (~learned & batch["attention_mask"][0].bool()).sum() == 4 + 128
    assert batch["qformer_input_ids"].shape == (1, 128)


def test_ids_are_kept_only_when_asked_for(processor, tiny_images):
    rows = [sample(tiny_images[0], id="q1", dataset="vqa"), sample(tiny_images[0], id="q2")]
    assert "id" not in InstructBLIPCollator(processor)(rows)
    batch = InstructBLIPCollator(processor, keep_ids=True)(rows)
    assert (batch["id"], batch["dataset"]) == (["q1", "q2"], ["vqa", None])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response": None}, r"sample 1 \(id 'q7'\): 'response' is a NoneType, a string was expected"),
        ({"instruction": 3}, r"sample 1 \(id 'q7'\): 'instruction' is a int"),
        ({"history": ["hi"]}, r"sample 1 \(id 'q7'\): a round of 'history' is 'hi'"),
        ({"image": b"broken"}, r"image 0 of sample 1 \(id 'q7'\) is not an image"),
        ({"images": "a.png"}, r"sample 1 \(id 'q7'\): 'images' is a str, a list was expected"),
        ({"image_ids": ["a", "b"]}, r"sample 1 \(id 'q7'\) has 2 image_ids for 1 images"),
    ],
)
def test_a_bad_sample_is_named(collate, tiny_images, change, message):
    with pytest.raises(ValueError, match=message):
        collate([sample(tiny_images[0]), {**sample(tiny_images[1]), "id": "q7", **change}])


@pytest.mark.parametrize("key", ["instruction", "response", "image"])
def test_a_missing_key_is_named(collate, tiny_images, key):
    row = sample(tiny_images[1])
    del row[key]
    with pytest.raises(ValueError, match=f"sample 1: '{key}' is missing.*the keys are"):
        collate([sample(tiny_images[0]), row])


def test_the_collator_travels_to_worker_processes(collate, tiny_images):
    travelled = pickle.loads(pickle.dumps(collate))
    assert torch.equal(travelled([sample(tiny_images[0])])["labels"], collate([sample(tiny_images[0])])["labels"])
