"""SIGTERM and Ctrl-C while training: the step is finished, and all processes stop after the same one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

DEFAULTS = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


class Interruption:
    """The signal that this process got, and the one that all processes have agreed to stop for."""

    def __init__(self) -> None:
        self._caught = 0
        self._caught_at = 0.0
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Inside, SIGTERM and SIGINT are noted; where somebody else already handles one, it is left to them.

        A second one, a second later or more, does what it always does. torchrun passes Ctrl-C on to processes that have
        already got it from the terminal, so one that follows at once is the same.
        """
        self._caught, self._pending = 0, None
        installed = []
        if threading.current_thread() is threading.main_thread():  # Python has no handlers elsewhere
            installed = [number for number, default in DEFAULTS.items() if signal.getsignal(number) == default]
        for number in installed:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number in installed:
                signal.signal(number, DEFAULTS[number])
            self._wait()

    def _note(self, number: int, frame: object) -> None:
        if self._caught and time.monotonic() - self._caught_at >= 1:
            signal.signal(number, DEFAULTS[signal.Signals(number)])
            os.kill(os.getpid(), number)
        elif not self._caught:
            self._caught, self._caught_at = number, time.monotonic()

    def agreed(self) -> int:
        """The signal to stop for after this step, or 0; every process calls it after every step.

        With several processes the answer is what any of them had caught a step ago: they exchange it beside the
        training of a step, on the host, and nothing waits for it.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self._caught
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        agreed = self._wait()
        flag = torch.tensor(self._caught)
        self._pending = (dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True), flag)
        return agreed

    def _wait(self) -> int:
        if self._pending is None:
            return 0
        (work, flag), self._pending = self._pending, None
        try:
            work.wait()
        except RuntimeError:  # another process is gone; the next collective of the training says so
            return 0
        return int(flag)


class ShieldedWorker:
    """A DataLoader's `worker_init_fn`: SIGTERM and Ctrl-C reach all processes of a job, and only the trainer decides.

    The process that made the worker can still end it.
    """

    def __init__(self, then=None):
        self.then = then

    def __call__(self, worker_id: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            threading.Thread(target=_end_only_for, args=(os.getppid(),), daemon=True).start()
        if self.then is not None:
            self.then(worker_id)


def _end_only_for(parent: int) -> None:
    while True:
        if signal.sigwaitinfo([signal.SIGTERM]).si_pid == parent:
            os._exit(0)
