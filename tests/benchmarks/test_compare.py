"""The benchmark's command runs and its own checks of equal results can fail; nothing here looks at a time."""

import json

import pytest


@pytest.fixture
def compare():
    import compare

    return compare


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_both_models_do_the_same_work(compare, language, tmp_path, capsys):
    rows = ["train-mixed", "train-shared", "beam5-1", "rank-16"]
    output = tmp_path / "compare.json"
    options = ["--size=tiny", "--repetitions=1", "--threads=1", f"--language={language}", f"--output={output}"]
    compare.main(["--rows", *rows, *options])
    report = json.loads(output.read_text())
    assert [row["name"] for row in report["rows"]] == rows
    assert all(len(times) == 1 for row in report["rows"] for times in row["seconds"].values())
    printed = capsys.readouterr().out
    assert "A/A" in printed
    assert "same order" in printed


def test_compiled_models_are_compared_too(compare, monkeypatch, capsys):
    compiled = []

    def no_compiler(model, mode):
        compiled.append((type(model).__name__, mode))
        return model

    monkeypatch.setattr("torch.compile", no_compiler)
    options = ["--size=tiny", "--repetitions=1", "--threads=1", "--language=llama", "--compile", "reduce-overhead"]
    (row,) = compare.main(["--rows", "train-mixed", *options])["rows"]
    assert [mode for _, mode in compiled] == ["reduce-overhead"] * 2
    assert {"peer compiled", "ours compiled", "ours compiled over compiled"} <= set(row["ratios"])
    printed = capsys.readouterr().out
    assert "Ours over peer, both compiled" in printed
    assert "of the measured matrix rate" in printed


def test_matrix_products_are_counted(compare):
    import torch
    from arithmetic import count_operations

    left, right = torch.randn(3, 4), torch.randn(4, 5, requires_grad=True)
    assert count_operations(lambda: (left @ right).sum().backward()) == 2 * (2 * 3 * 4 * 5)


def test_products_by_onednn_are_counted(compare, monkeypatch):
    import torch
    from arithmetic import count_operations

    from instructblip.modeling import onednn_linear

    monkeypatch.setattr(onednn_linear, "mkl_is_slow", lambda: torch.backends.mkldnn.is_available())
    monkeypatch.setattr(onednn_linear, "SMALLEST", 1)
    hidden, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 4)
    assert count_operations(lambda: onednn_linear.linear(hidden, weight).sum().backward()) == 2 * (2 * 2 * 3 * 4 * 5)


def test_rates_of_products_are_told(compare, monkeypatch):
    import arithmetic

    monkeypatch.setattr(arithmetic, "SHAPES", [(8, 16, 32)])
    *_, line = arithmetic.products_table().splitlines()
    assert line.startswith("| 8 x 16 x 32 | ")
    assert len(line.split("|")) == 9


def test_a_row_that_does_not_exist_is_named(compare):
    with pytest.raises(SystemExit, match="no row is called nothing"):
        compare.main(["--rows", "nothing"])


def test_different_results_stop_the_run(compare):
    from comparisons import ResultsDifferError
    from model_pairs import Setting, new_pair
    from training_rows import ROWS

    pair = new_pair(Setting("llama", "tiny"))
    pair.ours.language_projection.weight.data.mul_(1.1)
    with pytest.raises(ResultsDifferError, match="of gradients"):
        ROWS[0].prepare(pair).check()


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_one_candidate_of_a_vocabulary_with_another_score_stops_the_run(compare, language, monkeypatch):
    from comparisons import ResultsDifferError
    from model_pairs import Setting, new_pair
    from ranking_rows import prepare

    pair = new_pair(Setting(language, "tiny", training=False))
    assert "same order" in prepare(pair, "1000").check()
    score = pair.ours.score_candidates

    def another(*args, **kwargs):
        scores = score(*args, **kwargs)
        scores[0, 0] += 1.0
        return scores

    monkeypatch.setattr(pair.ours, "score_candidates", another)
    with pytest.raises(ResultsDifferError, match="candidate scores differ by 1.0"):
        prepare(pair, "1000").check()


@pytest.mark.parametrize(
    ("lengths", "padded", "real"), [("VQA_LIKE", 464, 425), ("MIXED", 1296, 534), ("EQUAL", 896, 896)]
)
def test_batches_have_the_stated_lengths(compare, lengths, padded, real):
    import batches
    from model_pairs import Setting

    mask = batches.new_batch(Setting("llama", "tiny"), getattr(batches, lengths)).text["attention_mask"]
    assert (mask.numel(), int(mask.sum())) == (padded, real)


def test_a_vocabulary_has_the_stated_shares_of_lengths(compare):
    import batches
    from model_pairs import Setting

    answers = batches.candidate_answers(Setting("llama", "tiny"), "1000")
    assert len({tuple(answer) for answer in answers}) == 1000
    assert [sum(len(answer) == length for answer in answers) for length in (1, 2, 3)] == [750, 180, 70]
