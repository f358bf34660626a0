"""Functions that run in several processes connected by gloo, forked from one that has imported everything."""

import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import time
import traceback
from pathlib import Path

import torch

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["instructblip.datasets_builders", "instructblip.training", "distributed_training"])

CONFIGS = Path(__file__).parents[1] / "examples" / "accelerate"


def launcher_environment(config):
    """What `accelerate launch --config_file examples/accelerate/NAME.yaml` sets for its processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    arguments = ["--config_file", str(CONFIGS / config), "--num_processes", "2", "--main_process_port", "0", "train.py"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(arguments)
        environment["DS_ACCELERATOR"] = environment["ACCELERATE_TORCH_DEVICE"] = "cpu"
    else:
        environment = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in environment.items() if name.startswith(("ACCELERATE_", "FSDP_", "DS_"))}


def on_cpu(deepspeed=False):
    """Let accelerate take CPU processes for GPUs: it shards on those only. DeepSpeed connects them itself."""
    from accelerate import DistributedType, PartialState

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    if not deepspeed:
        torch.distributed.init_process_group("gloo")


def run(function, *arguments, processes_count=2, environment=None):
    """Call `function(*arguments)` in each process; returns what each returned, of the first process first.

    Raises:
        AssertionError: one of them failed; has its traceback.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes_count):
        receiver, sender = processes.Pipe(duplex=False)
        place = (rank, processes_count, port, environment or {})
        process = processes.Process(target=_child, args=(sender, place, function, arguments), daemon=True)
        process.start()
        sender.close()
        started.append((process, receiver))
    results, deadline = {}, time.monotonic() + 120
    while len(results) < len(started) and time.monotonic() < deadline:
        waiting = {receiver: rank for rank, (_, receiver) in enumerate(started) if rank not in results}
        for receiver in multiprocessing.connection.wait(waiting, timeout=1):
            try:
                results[waiting[receiver]] = receiver.recv()
            except EOFError:
                results[waiting[receiver]] = f"process {waiting[receiver]} is gone"
            if isinstance(results[waiting[receiver]], str):  # the others may be waiting for it
                deadline = min(deadline, time.monotonic() + 3)
    for process, _ in started:
        process.join(3)
        process.kill()
    failed = [results.get(rank, f"process {rank} gave no answer") for rank in range(processes_count)]
    failed = [result for result in failed if isinstance(result, str)]
    assert not failed, "\n".join(failed)
    return [results[rank][0] for rank in range(processes_count)]


def _child(sender, place, function, arguments):
    rank, count, port, environment = place
    torch.set_num_threads(1)
    os.environ.update(environment)
    if count > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
        )  # fmt: skip
    try:
        result = (function(*arguments),)
    except BaseException:
        result = f"process {rank}:\n{traceback.format_exc()}"
    sender.send(result)
    sender.close()
    sys.stdout.flush()
    os._exit(0)  # the others may wait for this process in a collective that it has left
