"""A training run that pushes its checkpoints; tests/training/test_pushing.py runs it, so that settings are read afresh.

python pushing_run.py MODEL FOLDER
"""

import os
import sys

import killable_run

if __name__ == "__main__":
    model, folder = sys.argv[1:]
    run = killable_run.make(
        model, folder, f"{folder}.log", max_steps=4, push_to_hub=True, hub_model_id="org/run",
        hub_strategy="checkpoint", hub_always_push=True,
    )  # fmt: skip
    run.train()
    run.save_model(os.path.join(folder, "release"), bridge_only=True)  # as examples/train.py does
