"""Samples of any content that the row schema allows, for property tests."""

from hypothesis import settings
from hypothesis import strategies as st

from instructblip.datasets_builders.schema import make_sample

quick = settings(max_examples=100, deadline=None, derandomize=True)  # the same examples on every machine

HOSTILE = [
    "{0.__class__}",
    "{question}",
    "{answer}",
    "{{",
    "}",
    "{",
    "%s",
    "$question",
    "{question!r}",
    "<image>",
    "\\n",
]
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8))  # may be empty or blank
filled = st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1, max_size=8).filter(str.strip))
short = filled.filter(lambda text: len(text.split()) <= 3)


@st.composite
def samples(draw, question=texts, answers=texts, choices=texts, fewest_answers=0, fewest_choices=0):
    """A sample of the schema. Its label is one of the choices; where none are asked for, it may be missing."""
    listed = draw(st.lists(choices, min_size=fewest_choices, max_size=26))
    return make_sample(
        id=draw(st.text(max_size=5)),
        question=draw(question),
        answers=draw(st.lists(answers, min_size=fewest_answers, max_size=4)),
        choices=listed,
        label=draw(st.integers(0 if fewest_choices else -1, len(listed) - 1)),
        context=draw(texts),
        ocr_tokens=draw(st.lists(texts, max_size=35)),
        history=draw(st.lists(st.fixed_dictionaries({"question": texts, "answer": texts}), max_size=3)),
        tags=draw(st.lists(texts, max_size=2)),
    )


# With all that any task needs: a question, a short answer, and a labelled choice.
usable_samples = samples(short, short, short, fewest_answers=1, fewest_choices=1)
