"""Questions about tiny pictures, for training runs in processes of their own."""

import io

import datasets
from PIL import Image

from instructblip.datasets_builders.schema import make_sample, row_features

QUESTIONS = ("what is the color of this cat ?", "is there a dog ?", "what is in the picture ?", "how red is this ?")
ANSWERS = ("red", "no", "a green dog", "one two three four", "yes")


def picture(number):
    return Image.new("RGB", (28, 28), (number * 37 % 256, number * 91 % 256, number * 53 % 256))


def grouped_rows(**images):
    """Name -> rows in the schema, with two questions about each of so many images."""
    sources = {}
    for name, count in images.items():
        rows = []
        for number in range(count):
            png = io.BytesIO()
            picture(number).save(png, "PNG")
            samples = [make_sample(f"{name}{number}q{q}", QUESTIONS[q], [ANSWERS[number % 5]]) for q in range(2)]
            image = {"bytes": png.getvalue(), "path": None}
            rows.append({"image": image, "image_id": f"{name}{number}", "samples": samples})
        sources[name] = datasets.Dataset.from_list(rows, features=row_features())
    return sources
