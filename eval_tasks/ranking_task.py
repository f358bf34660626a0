"""Tasks that rank candidates: one lm-eval request per document instead of one per candidate.

lm-eval's `multiple_choice` makes a request of every choice: 109 million of them for MSRVTT-QA with 1,500 answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from instructblip.datasets_builders.table import TABLE
from instructblip.eval_tasks.answers import normalise_answer
from instructblip.eval_tasks.lm_eval_model import CandidateList
from instructblip.eval_tasks.metrics import likeliest

LOGGED = 5  # likeliest candidates that samples name


class RankCandidatesTask(ConfigurableTask):
    """A task that scores candidates (YAML: `class: !function ...ranking_task.RankCandidatesTask`).

    With `doc_to_choice` a document brings its candidates, and `process_results` gets their log-likelihoods, in that
    order, as `results[0]`. Without it the candidates are the answers of the training split, or with `num_candidates: N`
    the N most frequent of them, and `results[0]` is the likeliest, as a generated answer would be; a tie goes to the
    candidate that comes first, and scores that rank nothing (NaN) give "", with a warning. Samples log the likeliest
    five with their log-likelihoods under `resps`.

    `output_type` must be `multiple_choice`, which is what lm-eval takes it for while it checks the configuration.

    Raises:
        ValueError: no training answers, or `num_candidates` is not a positive number, or beside `doc_to_choice`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        own = ("class", "num_candidates")  # keys that lm-eval does not have
        super().__init__(config={name: value for name, value in config.items() if name not in own})
        self._instances: list[Instance] | None = None
        self.OUTPUT_TYPE = "rank_candidates"  # the method of the model that evaluate() calls
        most = config.get("num_candidates")
        if most is not None and (not isinstance(most, int) or most < 1 or self.config.doc_to_choice is not None):
            raise ValueError(
                f"{self.config.task}: num_candidates {most!r}: expected a positive number, in a task without "
                "doc_to_choice, which ranks training answers"
            )
        self.candidates: CandidateList | None = None
        if self.config.doc_to_choice is None:
            self.candidates = CandidateList(answer_vocabulary(self._training_answers(), most))

    def _training_answers(self) -> Iterable[str]:
        split = self.config.training_split
        if split is None or split not in self.dataset:
            raise ValueError(f"{self.config.task} ranks training answers, but its data has no split {split!r}")
        spec = TABLE.get((self.config.dataset_kwargs or {}).get("dataset"))
        lower = spec is not None and spec.lowercase_answers  # as the model was trained on them
        for samples in self.dataset[split].select_columns(["samples"]):
            for sample in samples["samples"]:
                yield from (answer.lower() for answer in sample["answers"]) if lower else sample["answers"]

    def build_all_requests(self, **kwargs: Any) -> None:
        self._instances = None
        super().build_all_requests(**kwargs)

    def doc_iterator(self, **kwargs: Any) -> Iterator[tuple[int, Any]]:
        """Documents with their numbers: once requests are built, theirs, instead of a second copy for the samples."""
        if self._instances is None:
            return super().doc_iterator(**kwargs)
        return ((instance.doc_id, instance.doc) for instance in self._instances)

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> Instance:
        kwargs = {name: value for name, value in kwargs.items() if name == "metadata"}
        candidates = self.candidates or self._own_candidates(doc)
        arguments = (ctx, candidates, {"visual": self.doc_to_image(doc)})
        return Instance(request_type=self.OUTPUT_TYPE, doc=doc, arguments=arguments, idx=0, **kwargs)

    def _own_candidates(self, doc: dict[str, Any]) -> CandidateList:
        candidates = self.doc_to_choice(doc)
        if not candidates:
            raise ValueError(f"{self.config.task}: document {doc.get('id')} has no candidates to rank")
        return CandidateList(candidates)

    def apply_filters(self) -> None:
        """Turn the scores into what `process_results` gets, and keep little of them: samples log both."""
        for instance in self.instances:
            scores, candidates = np.asarray(instance.resps[0]), instance.args[1]
            best = np.argsort(-scores, kind="stable")[:LOGGED].tolist()
            instance.resps = [[(candidates[number], float(scores[number])) for number in best]]
            if self.candidates is None:
                instance.filtered_resps["none"] = scores.tolist()
            else:
                instance.filtered_resps["none"] = "" if likeliest(scores) is None else candidates[best[0]]

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        predict_only = not callable(self.config.process_results)  # lm-eval has taken the function away
        return {} if predict_only else self.config.process_results(doc, results)


def answer_vocabulary(answers: Iterable[str], most: int | None = None) -> Sequence[str]:
    """The different answers, each in its most frequent spelling.

    Answers that the VQA evaluation takes for the same ("Yes." and "yes") are one. Alphabetical; of equally frequent
    spellings the alphabetically first.

    Args:
        most: only as many, the most frequent; of equally frequent answers the alphabetically first.

    Raises:
        ValueError: there are none.
    """
    spellings: dict[str, Counter[str]] = {}
    for answer in answers:
        if answer.strip():
            spellings.setdefault(normalise_answer(answer), Counter())[answer.strip()] += 1
    if not spellings:
        raise ValueError("no training answers to rank")
    kept = sorted(spellings, key=lambda answer: (-spellings[answer].total(), answer))[:most]
    return [min(counts, key=lambda text: (-counts[text], text)) for counts in map(spellings.get, sorted(kept))]
