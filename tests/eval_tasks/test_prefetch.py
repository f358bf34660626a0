import threading
from contextlib import closing

import pytest

from instructblip.eval_tasks.prefetch import prepare_ahead


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prepare_batch")]


def test_batches_come_in_order_from_one_other_thread():
    with closing(prepare_ahead(lambda batch: (batch, threading.get_ident()), range(20))) as prepared:
        results = list(prepared)
    assert [batch for batch, _ in results] == list(range(20))
    assert len({thread for _, thread in results} | {threading.get_ident()}) == 2
    assert list(prepare_ahead(str, [])) == []


def test_the_next_batch_is_prepared_while_the_caller_works_and_no_further_one():
    begun = [threading.Event() for _ in range(5)]
    taken = []

    def prepare(batch):
        begun[batch].set()
        return batch

    def batches():
        for batch in range(5):
            taken.append(batch)
            yield batch

    with closing(prepare_ahead(prepare, batches())) as prepared:
        for batch in prepared:
            if batch < 4:
                assert begun[batch + 1].wait(timeout=10)
            assert taken == list(range(min(batch + 2, 5)))


def test_what_went_wrong_is_raised_when_its_batch_is_due():
    def prepare(batch):
        if batch == 2:
            raise ValueError("picture 2 is damaged")
        return batch

    seen = []
    with closing(prepare_ahead(prepare, range(5))) as prepared:
        seen += [next(prepared), next(prepared)]
        with pytest.raises(ValueError, match="picture 2 is damaged"):
            next(prepared)
    assert seen == [0, 1]
    assert threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, None])
def test_no_thread_is_left(error):
    finished = []

    def work():
        with closing(prepare_ahead(lambda batch: finished.append(batch) or batch, range(100))) as prepared:
            for batch in prepared:
                if error is not None and batch == 3:
                    raise error

    if error is None:
        work()
        assert finished == list(range(100))
    else:
        with pytest.raises(error) as caught:
            work()
        assert caught.tb is not None  # a traceback keeps the frames, and with them a generator that nobody closes
        assert finished[:4] == [0, 1, 2, 3]
        assert len(finished) <= 5
    assert threads() == []
