"""`instructblip-eval` as a function that `several_processes.run` can send to processes of its own."""

from functools import partial


def run_command(cache, arguments):
    """Run the command on `arguments`, with data sets built in the folder `cache` and without lm-eval's own tasks."""
    import datasets
    import lm_eval.tasks

    from instructblip.eval_tasks.__main__ import main

    datasets.config.HF_DATASETS_CACHE = cache
    lm_eval.tasks.TaskManager = partial(lm_eval.tasks.TaskManager, include_defaults=False)  # those take ten seconds
    main(arguments)
