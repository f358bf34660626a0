"""Evaluation with lm-eval: tasks, metrics and the model class `instructblip`.

    from instructblip.eval_tasks import InstructBLIPEvalModel, task_manager

    results = lm_eval.simple_evaluate(
        model=InstructBLIPEvalModel("Salesforce/instructblip-flan-t5-xl", batch_size=8),
        tasks=["instructblip_vqa_rad"],
        task_manager=task_manager(data_root="/data"),
    )

Importing this package does not import lm-eval.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from instructblip.eval_tasks.lm_eval_model import InstructBLIPEvalModel

TASK_FOLDER = Path(__file__).parent  # holds the YAML files

__all__ = ["TASK_FOLDER", "InstructBLIPEvalModel", "task_manager"]


def task_manager(include_defaults: bool = False, **metadata: Any) -> "TaskManager":
    """lm-eval's task manager with our tasks.

    Args:
        include_defaults: lm-eval's own 10,000 tasks too; finding them takes seconds.
        metadata: what the command line takes as `--metadata`: `data_root="/data"`, see `task_data.load_rows`.
    """
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASK_FOLDER), include_defaults=include_defaults, metadata=metadata)


def __getattr__(name: str) -> Any:
    if name == "InstructBLIPEvalModel":
        from instructblip.eval_tasks.lm_eval_model import InstructBLIPEvalModel

        return InstructBLIPEvalModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
