"""Tasks that rank a large candidate set: one lm-eval request per document instead of one per candidate.

lm-eval's `multiple_choice` makes a request of every choice: 73 million of them for MSRVTT-QA with 1,000 answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from instructblip.datasets_builders.table import TABLE
from instructblip.eval_tasks.lm_eval_model import CandidateList
from instructblip.eval_tasks.metrics import normalise_answer


class RankCandidatesTask(ConfigurableTask):
    """A task whose prediction is the likeliest of the answers in its training split (YAML: `class: !function ...`).

    `process_results` gets that answer, as it would a generated one. A tie goes to the candidate that comes first.
    `output_type` must be `multiple_choice`, which is what lm-eval takes it for while it checks the configuration.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={name: value for name, value in config.items() if name != "class"})
        self.OUTPUT_TYPE = "rank_candidates"  # the method of the model that evaluate() calls
        spec = TABLE.get((self.config.dataset_kwargs or {}).get("dataset"))
        answers = self._training_answers()
        if spec is not None and spec.lowercase_answers:  # as the model was trained on them
            answers = (answer.lower() for answer in answers)
        self.candidates = CandidateList(answer_vocabulary(answers))

    def _training_answers(self) -> Iterable[str]:
        split = self.config.training_split
        if split is None or split not in self.dataset:
            raise ValueError(f"{self.config.task} ranks training answers, but its data has no split {split!r}")
        for samples in self.dataset[split].select_columns(["samples"]):
            for sample in samples["samples"]:
                yield from sample["answers"]

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> Instance:
        kwargs = {name: value for name, value in kwargs.items() if name == "metadata"}
        arguments = (ctx, self.candidates, {"visual": self.doc_to_image(doc)})
        return Instance(request_type=self.OUTPUT_TYPE, doc=doc, arguments=arguments, idx=0, **kwargs)

    def apply_filters(self) -> None:
        """Replace the scores by the answer that they name, which is what samples log and `process_results` gets."""
        for instance in self.instances:
            instance.filtered_resps["none"] = self.candidates[int(np.argmax(instance.resps[0]))]

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        predict_only = not callable(self.config.process_results)  # lm-eval has taken the function away
        return {} if predict_only else self.config.process_results(doc, results)


def answer_vocabulary(answers: Iterable[str]) -> list[str]:
    """The different answers, each in its most frequent spelling.

    Answers that the VQA evaluation takes for the same ("Yes." and "yes") are one. Alphabetical; of equally frequent
    spellings the alphabetically first.

    Raises:
        ValueError: there are none.
    """
    spellings: dict[str, Counter[str]] = {}
    for answer in answers:
        if answer.strip():
            spellings.setdefault(normalise_answer(answer), Counter())[answer.strip()] += 1
    if not spellings:
        raise ValueError("no training answers to rank")
    return [min(counts, key=lambda text: (-counts[text], text)) for _, counts in sorted(spellings.items())]
