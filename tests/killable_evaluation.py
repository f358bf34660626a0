"""A short evaluation with a result cache in a process of its own, which can be killed at a given moment.

Run as a script it is a server: it has imported everything and forks a process for every run it is asked for.
"""

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
import traceback

WORDS = "yes no red blue green cat dog one two three left right photo picture is a".split()
CANDIDATES = [f"{first} {second}" for first in WORDS for second in WORDS]  # 1 KB of scores a document
QUESTIONS = ["what color", "is there a cat ?", "what is in the picture ?", "is the dog left ?"]


def requests(folder, numbers):
    """Generated and ranked documents about three pictures."""
    from lm_eval.api.instance import Instance

    settings = {"until": [], "max_new_tokens": 4, "num_beams": 2, "do_sample": False}
    asked = {"generate_until": settings, "rank_candidates": CANDIDATES}
    return {
        kind: [
            Instance(
                request_type=kind,
                doc={},
                arguments=(QUESTIONS[n % 4] + " ?" * (n // 4), what, {"visual": [f"{folder}/{n % 3}.png"]}),
                idx=0,
                metadata=("task", n, 1),
            )
            for n in numbers
        ]
        for kind, what in asked.items()
    }


def evaluate(release, folder, cache, numbers, record, output, event=None, byte=None, full=None):
    """Answers go to `output`, and to `record` how many documents the model had in each call.

    Args:
        event: SIGKILL at this many statements and openings in the cache.
        byte: die once a file is longer than this.
        full: no file can be longer than this.
    """
    from instructblip.eval_tasks import InstructBLIPEvalModel

    arguments = f"pretrained={release},dtype=float32,batch_size=3,device=cpu"
    if event is not None:
        die_at_event(cache, event)
    for limit, action in ((byte, signal.SIG_DFL), (full, signal.SIG_IGN)):
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, action)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    lm = InstructBLIPEvalModel.create_from_arg_string(arguments + (f",result_cache={cache}" if cache else ""))
    for name in ("generate", "score"):
        setattr(lm.driver, name, counted(getattr(lm.driver, name), record))
    asked = requests(folder, numbers)
    answers = lm.generate_until(asked["generate_until"])
    scores = [[score.hex() for score in row.tolist()] for row in lm.rank_candidates(asked["rank_candidates"])]
    with open(output, "w") as file:
        json.dump([answers, scores], file)


def counted(function, record):
    def call(inputs, *arguments):
        with open(record, "a") as file:
            file.write(f"{len(inputs['input_ids'])}\n")
        return function(inputs, *arguments)

    return call


def die_at_event(folder, number):
    left = [number]

    def happened(*_):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        if event in ("open", "os.rename", "os.mkdir") and folder in str(arguments[0]):
            happened()

    def traced(*arguments, **kwargs):
        database = connect(*arguments, **kwargs)
        database.set_trace_callback(happened)
        return database

    connect, sqlite3.connect = sqlite3.connect, traced
    sys.addaudithook(hook)


class Server:
    """Starts evaluations; `run` waits for them."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *runs, after=None):
        """Exit codes of evaluations that run at the same time; SIGKILL `after` seconds from the first batch."""
        self.process.stdin.write(json.dumps(runs) + "\n")
        self.process.stdin.flush()
        started = json.loads(self.process.stdout.readline())
        if after is not None:
            deadline = time.monotonic() + 60
            while not os.path.exists(runs[0]["record"]) and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(after)
            for pid in started:
                os.kill(pid, signal.SIGKILL)  # not reaped before the server is told to
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)


def _serve():
    import torch

    import instructblip.eval_tasks.lm_eval_model  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        started = []
        for arguments in json.loads(line):
            pid = os.fork()
            if not pid:
                _child(arguments)
            started.append(pid)
        print(json.dumps(started), flush=True)
        sys.stdin.readline()
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]), flush=True)


def _child(arguments):
    with open(f"{arguments['record']}-said", "a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    try:
        evaluate(**arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    _serve()
