"""Evaluations of stub models whose results are written as lm-eval's command line writes them."""

import lm_eval
from lm_eval.loggers import EvaluationTracker

from instructblip.eval_tasks import task_manager


def answering(lm, answer):
    """`lm`, generating `answer(place, document)` for the document at that place among those asked of its task."""

    def generate_until(requests):
        return [answer(request.doc_id, request.doc) for request in requests]

    lm.generate_until = generate_until
    return lm


def log_evaluation(lm, output, data_root, tasks, *, name, **options):
    """Evaluate `lm` under the name of a release, with options of `simple_evaluate`; returns the results file."""
    about = lm.get_model_info() | {"model_name": name}
    lm.get_model_info = lambda: about
    tracker = EvaluationTracker(output_path=str(output))
    results = lm_eval.simple_evaluate(
        lm,
        tasks=list(tasks),
        task_manager=task_manager(data_root=str(data_root)),
        bootstrap_iters=0,
        evaluation_tracker=tracker,
        **options,
    )
    samples = results.pop("samples", None) or {}
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in samples:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return max(output.rglob("results_*.json"), key=lambda file: file.stat().st_mtime_ns)
