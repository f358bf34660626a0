"""Results as `model-index` metadata, which the Hub reads from a model card."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import EvalResult

from instructblip.datasets_builders.table import TABLE, DatasetSpec
from instructblip.eval_tasks.report_tables import OUR_TASKS, PTB, Measured, dataset_name, percent, split_name

METRIC_IDS = {"auroc": "roc_auc"}  # the Hub's name where it is another


def eval_results(measured: Mapping[str, Measured]) -> list[EvalResult]:
    """The first score of each of our tasks, x 100, and CIDEr (PTB) where it was computed.

    Left out: tasks that were run in part (`--limit`), tasks that are not ours, and scores that are not a number.

    Args:
        measured: of one model, by task.
    """
    results = []
    for task, of_task in measured.items():
        run = of_task.run
        spec = TABLE.get(dataset_name(run))
        if run.is_partial or not task.startswith(OUR_TASKS) or spec is None:
            continue
        metrics = (run.first_metric, run.first_metric + PTB)
        results += [_result(of_task, metric, spec) for metric in metrics if _has_value(of_task, metric)]
    return results


def _has_value(measured: Measured, metric: str) -> bool:
    return metric in measured.scores and measured.scores[metric].value is not None


def _result(measured: Measured, metric: str, spec: DatasetSpec) -> EvalResult:
    run, score = measured.run, measured.scores[metric]
    factor = 100 if percent(run, metric) else 1
    short = run.task.removeprefix(OUR_TASKS)
    about = {"lm_eval_task": run.task, "task_version": run.version, "documents": run.documents}
    if score.interval:
        about["interval_95"] = [round(factor * end, 2) for end in score.interval]
    plain = metric.removesuffix(PTB)
    return EvalResult(
        task_type=_task_type(spec),
        task_name=spec.category,
        dataset_type=spec.hub[0].repo if spec.hub else spec.name,
        dataset_name=spec.title,
        dataset_config=(run.config.get("dataset_kwargs") or {}).get("config"),
        dataset_split=split_name(run),
        metric_type=METRIC_IDS.get(plain, plain),
        metric_name=metric if short == spec.name else f"{metric}, {short}",
        metric_value=round(factor * (score.value or 0.0), 2),
        metric_args=about,
    )


def _task_type(spec: DatasetSpec) -> str:
    """The Hub's name for what a dataset asks for."""
    if spec.category.startswith("image captioning"):
        return "image-to-text"
    if spec.category.startswith("video"):
        return "video-text-to-text"
    return "visual-question-answering"
