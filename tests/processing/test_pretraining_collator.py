"""Batches of pictures and captions: every picture once, what is drawn can be drawn again, samples named."""

import pickle

import pytest
import torch

from instructblip import InstructBLIPCollator, InstructBLIPStage1Collator, InstructBLIPStage2Collator
from instructblip.processing.pretraining_collator import fingerprint


def sample(image, caption="a red cat", **more):
    return {"image": image, "caption": caption, **more}


# ---- stage 1


@pytest.fixture
def collate(processor):
    return InstructBLIPStage1Collator(processor)


def words_of(processor, ids):
    return processor.qformer_tokenizer.convert_ids_to_tokens(ids)


def test_captions_are_bracketed_and_padded_on_the_right(collate, processor, tiny_images):
    batch = collate([sample(tiny_images[0]), sample(tiny_images[1], "dog")])
    assert words_of(processor, batch["input_ids"][0]) == [
        "[CLS]",
        "a",
        "red",
        "cat",
        "[SEP]",
        "[PAD]",
        "[PAD]",
        "[PAD]",
    ]
    assert words_of(processor, batch["input_ids"][1])[:4] == ["[CLS]", "dog", "[SEP]", "[PAD]"]
    assert batch["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 3 + [0] * 5]
    torch.testing.assert_close(batch["pixel_values"], processor(images=tiny_images[:2])["pixel_values"])
    assert batch["image_index"].tolist() == [[0], [1]]


def test_a_long_caption_loses_its_end_as_in_lavis(processor, tiny_images):
    collate = InstructBLIPStage1Collator(processor, max_length=5, pad_to_multiple_of=None)
    batch = collate([sample(tiny_images[0], "what is the color of this cat")])
    assert words_of(processor, batch["input_ids"][0]) == ["[CLS]", "what", "is", "the", "[SEP]"]
    with pytest.raises(ValueError, match="max_length is 2"):
        InstructBLIPStage1Collator(processor, max_length=2)


def test_captions_of_one_picture_share_its_pixels_and_its_id(collate, tiny_images):
    rows = [sample(tiny_images[number].copy(), image_id=f"coco/{number}") for number in (0, 1, 0)]
    batch = collate(rows)
    assert batch["pixel_values"].shape[0] == 2
    assert batch["image_index"].tolist() == [[0], [1], [0]]
    first, second, third = batch["image_ids"].tolist()
    assert first == third != second
    assert collate(rows[2:])["image_ids"].tolist() == [first]  # in any batch


def test_without_an_id_the_pixels_tell_pictures_apart_in_any_process(collate, tiny_images, tmp_path):
    tiny_images[0].save(tmp_path / "a.png")
    batch = collate([sample(tiny_images[0]), sample(str(tmp_path / "a.png")), sample(tiny_images[1])])
    first, second, third = batch["image_ids"].tolist()
    assert first == second != third
    assert fingerprint("coco/1") == 3077969096041363855  # written down, as another process would find it
    assert fingerprint(1) != fingerprint("1")


def test_stored_embeddings_stand_in_for_pictures(collate):
    embeds = [torch.randn(17, 32, dtype=torch.bfloat16) for _ in range(2)]
    rows = [{"image_embeds": embeds[number], "caption": "a cat"} for number in (0, 1, 0)]
    batch = collate(rows)
    assert torch.equal(batch["image_embeds"], torch.stack(embeds))
    assert "pixel_values" not in batch
    assert batch["image_index"].tolist() == [[0], [1], [0]]
    assert batch["image_ids"][0] == batch["image_ids"][2] != batch["image_ids"][1]


def test_a_sample_needs_one_picture_and_a_caption_and_is_named(collate, tiny_images):
    good = sample(tiny_images[0])
    with pytest.raises(ValueError, match=r"sample 1 \(id 'b'\) has 0 images: a caption belongs to one"):
        collate([good, sample(None, id="b")])
    with pytest.raises(ValueError, match="sample 1 has 2 images"):
        collate([good, {"images": tiny_images[:2], "caption": "two cats"}])
    with pytest.raises(ValueError, match=r"sample 1: 'caption' is missing; the keys are \['image'\]"):
        collate([good, {"image": tiny_images[1]}])
    with pytest.raises(ValueError, match="sample 0: 'caption' is '  ', where words were expected"):
        collate([sample(tiny_images[0], "  ")])
    with pytest.raises(ValueError, match="sample 0: 'captions' is 'a cat', where words were expected"):
        collate([{"image": tiny_images[0], "captions": "a cat"}])


def test_ids_are_kept_when_asked_for(processor, tiny_images):
    batch = InstructBLIPStage1Collator(processor, keep_ids=True)([sample(tiny_images[0], id="x", dataset="coco")])
    assert (batch["id"], batch["dataset"]) == (["x"], ["coco"])


def test_the_samples_of_our_data_sets_are_captions_too(collate, tiny_images):
    expected = collate([sample(tiny_images[0])])
    batch = collate([{"image": tiny_images[0], "instruction": "a short description", "response": "a red cat"}])
    torch.testing.assert_close(dict(batch), dict(expected), rtol=0, atol=0)


# ---- what is drawn


def drawn(collator, rows, key="input_ids"):
    return collator(rows)[key].tolist()


@pytest.mark.parametrize("collator", [InstructBLIPStage1Collator, InstructBLIPStage2Collator])
def test_draws_depend_on_seed_epoch_and_sample_only(make_processor, tiny_images, collator):
    processor = make_processor("t5")
    captions = ["a red cat in a photo", "a blue dog in a picture", "one two three four"]
    rows = [{"image": tiny_images[0], "captions": captions, "id": str(number)} for number in range(40)]
    collate = collator(processor, seed=1)
    first = [drawn(collate, [row])[0] for row in rows]
    assert [drawn(pickle.loads(pickle.dumps(collate)), [row])[0] for row in reversed(rows)] == first[::-1]
    assert len(set(map(tuple, first))) >= 3
    collate.set_epoch(1)
    assert [drawn(collate, [row])[0] for row in rows] != first
    collate.set_epoch(0)
    assert [drawn(collate, [row])[0] for row in rows] == first
    assert [drawn(collator(processor, seed=2), [row])[0] for row in rows] != first
    collate.set_epoch(7)  # a sample's own epoch, that of its pass over a source, counts first
    assert [drawn(collate, [{**row, "epoch": 0}])[0] for row in rows] == first


# ---- stage 2


def test_an_encoder_decoder_reads_the_beginning_of_a_caption_and_writes_the_rest(make_processor, tiny_images):
    processor = make_processor("t5")
    collate = InstructBLIPStage2Collator(processor)
    places = set()
    for number in range(60):
        batch = collate([sample(tiny_images[0], "one two three four", id=number)])
        read = processor.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True).split()
        labels = batch["labels"][0][batch["labels"][0] != -100]
        written = processor.tokenizer.decode(labels, skip_special_tokens=True).split()
        assert read + written == ["one", "two", "three", "four"]
        assert labels[-1] == processor.tokenizer.eos_token_id
        places.add(len(read))
    assert places == {0, 1, 2, 3}  # something is always written


def test_a_caption_of_one_word_is_written_whole(make_processor, tiny_images):
    processor = make_processor("t5")
    batch = InstructBLIPStage2Collator(processor)([sample(tiny_images[0], "cat")])
    expected = InstructBLIPCollator(processor)([{"image": tiny_images[0], "instruction": "", "response": "cat"}])
    torch.testing.assert_close(dict(batch), dict(expected), rtol=0, atol=0)


def test_a_decoder_only_model_writes_the_caption_and_a_new_line(make_processor, tiny_images):
    processor = make_processor("gpt2")
    batch = InstructBLIPStage2Collator(processor)([sample(tiny_images[0], "a red cat"), sample(tiny_images[1], "dog")])
    written = [processor.tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]
    assert written == [" a red cat\n<|endoftext|>", " dog\n<|endoftext|>"]
    read = batch["input_ids"][(batch["labels"] == -100) & (batch["attention_mask"] == 1)]
    assert set(read.tolist()) == {processor.image_token_id}


def test_other_answers_and_rounds_of_a_sample_are_left_out(make_processor, tiny_images):
    processor = make_processor("llama")
    row = sample(tiny_images[0], history=[{"question": "what", "answer": "cat"}], completion="no", instruction="what")
    expected = InstructBLIPStage2Collator(processor)([sample(tiny_images[0])])
    batch = InstructBLIPStage2Collator(processor)([row])
    torch.testing.assert_close(dict(batch), dict(expected), rtol=0, atol=0)


def test_stage_2_lengths_are_those_of_lavis(make_processor, tiny_images):
    batch = InstructBLIPStage2Collator(make_processor("gpt2"))([sample(tiny_images[0], "a red cat " * 40)])
    assert (batch["labels"] != -100).sum() == 32
