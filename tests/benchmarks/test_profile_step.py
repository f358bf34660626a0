"""The profile adds up and says of what kind each kernel is; nothing here looks at a time."""

import pytest


@pytest.fixture
def profile_step():
    import profile_step

    return profile_step


@pytest.mark.parametrize("language", ["llama", "t5"])
def test_what_is_found_adds_up(profile_step, language, capsys):
    found = profile_step.main([f"--language={language}", "--size=tiny", "--threads=1", "--steps=1", "--warmup=1"])
    assert sum(found["kinds"].values()) == pytest.approx(found["busy"])
    assert {"matrix products", "attention", "optimizer"} <= set(found["kinds"])
    assert found["rows"] == 8
    assert "samples a second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention)", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("void at::native::multi_tensor_apply_kernel<...>", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "copies and fills"),
        ("void at::native::vectorized_layer_norm_kernel<...>", "normalization and activations"),
        ("void at::native::reduce_kernel<512, 1, ...>", "other"),
    ],
)
def test_kernels_are_sorted_by_kind(profile_step, name, kind):
    assert profile_step.kind_of(name) == kind
