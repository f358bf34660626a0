"""Ask a saved model about pictures.

    python examples/vqa_rad/ask.py outputs/vqa_rad/release scan.jpg "Is this an axial plane?" [IMAGE QUESTION ...]

Prints one answer a line.
"""

import sys

from transformers import AutoModel, AutoProcessor

import instructblip  # noqa: F401  registers the model with transformers' Auto classes

PROMPT = "Question: {question} Short answer:"  # as in training


def answer(release: str, images: list[str], questions: list[str]) -> list[str]:
    """Answers to one question about each image.

    Args:
        release: folder or Hub id that holds model and processor.
        images: paths.
    """
    model, processor = AutoModel.from_pretrained(release).eval(), AutoProcessor.from_pretrained(release)
    inputs = processor(images=images, text=[PROMPT.format(question=question) for question in questions])
    tokens = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


if __name__ == "__main__":
    if len(sys.argv) < 4 or len(sys.argv) % 2:
        sys.exit(__doc__)
    print("\n".join(answer(sys.argv[1], sys.argv[2::2], sys.argv[3::2])))
