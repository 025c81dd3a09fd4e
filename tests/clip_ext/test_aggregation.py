"""Golden values and limits of depth aggregation and stage fusion."""

import pytest
import torch
from torch.testing import assert_close

from clip_ext.aggregation import NGA_MODES, NeighbourhoodGaussian, StageFusion

STAGES = ((5, 6, 7), (8, 9), (10, 11, 12))


def stage_weights(n_blocks: int, **arguments: object) -> torch.Tensor:
    arguments = {"depth": 12} | arguments
    nga = NeighbourhoodGaussian([range(1, n_blocks + 1)], **arguments)
    return nga.weights()[0].detach()


@pytest.mark.parametrize(
    ("n_blocks", "arguments", "expected"),
    [
        (2, {}, [0.3775, 0.6225]),
        (2, {"offset": 1}, [0.1824, 0.8176]),
        (3, {}, [0.0777, 0.3482, 0.5741]),
        (3, {"offset": 1}, [0.0148, 0.1797, 0.8055]),
        (4, {}, [0.0063, 0.0772, 0.3460, 0.5705]),
        (4, {"offset": 1}, [0.0004, 0.0147, 0.1797, 0.8052]),
        (6, {"depth": 24}, [0.0147, 0.0452, 0.1085, 0.2027, 0.2949, 0.3341]),
        (2, {"depth": 24}, [0.4688, 0.5312]),
    ],
)
@pytest.mark.parametrize("mode", ["gaussian", "free"])
def test_nga_initial_weights_equal_the_golden_values(n_blocks, arguments, expected, mode) -> None:
    assert_close(stage_weights(n_blocks, mode=mode, **arguments), torch.tensor(expected), atol=1e-4, rtol=0)


def test_nga_wide_sigma_equals_the_golden_values() -> None:
    weights = stage_weights(3, sigma_init=5.0)
    assert_close(weights, torch.tensor([0.318, 0.338, 0.344]), atol=5e-4, rtol=0)


def test_nga_weights_are_normalised_gaussians() -> None:
    unnormalised = torch.tensor([0.1353, 0.6065, 1.0])
    assert_close(stage_weights(3), unnormalised / unnormalised.sum(), atol=1e-4, rtol=0)


def test_nga_initial_rho_gives_sigma_one() -> None:
    nga = NeighbourhoodGaussian(STAGES, depth=12)
    assert_close(nga.rho.detach(), torch.full((3,), 0.110647), atol=1e-6, rtol=0)
    assert_close(nga.sigma().detach(), torch.ones(3))


def test_nga_gaussian_weights_increase_with_depth_and_become_uniform() -> None:
    weights = stage_weights(4)
    assert (weights.diff() > 0).all()
    assert_close(stage_weights(4, sigma_init=1000.0), torch.full((4,), 0.25), atol=1e-5, rtol=0)


def test_nga_narrowest_sigma_stays_finite() -> None:
    nga = NeighbourhoodGaussian([range(1, 13)], depth=12)
    torch.nn.init.constant_(nga.rho, -100.0)
    u = torch.randn(12, 2, 4, requires_grad=True)
    nga(u).sum().backward()
    assert nga.weights().isfinite().all() and nga.rho.grad.isfinite().all() and u.grad.isfinite().all()


def test_nga_fixed_modes() -> None:
    mean, last = (NeighbourhoodGaussian(STAGES, depth=12, mode=mode) for mode in ("mean", "last"))
    assert_close(mean.weights()[0, :3], torch.full((3,), 1 / 3))
    assert last.weights().nonzero().tolist() == [[0, 2], [1, 4], [2, 7]]
    assert not list(mean.parameters()) and not list(last.parameters())


@pytest.mark.parametrize("mode", NGA_MODES)
def test_nga_all_stages_at_once_equal_a_loop_over_stages(mode) -> None:
    nga = NeighbourhoodGaussian(STAGES, depth=12, mode=mode)
    u = torch.randn(8, 2, 5)
    position = {block: k for k, block in enumerate(nga.blocks)}
    for stage, row in zip(STAGES, nga(u), strict=True):
        single = NeighbourhoodGaussian([stage], depth=12, mode=mode)
        own = torch.stack([u[position[block]] for block in stage])
        expected = (single.weights()[0, :, None, None] * own).sum(dim=0)
        assert_close(row, expected)


@pytest.mark.parametrize("mode", NGA_MODES)
def test_nga_one_block_stages_are_the_identity_without_parameters(mode) -> None:
    nga = NeighbourhoodGaussian([(3,), (12,)], depth=12, mode=mode)
    u = torch.randn(2, 1, 5)
    assert torch.equal(nga(u), u)
    assert not list(nga.parameters())


def test_nga_single_block_stage_among_others_has_no_sigma() -> None:
    nga = NeighbourhoodGaussian([(1, 2), (3,), (4, 5, 6)], depth=6)
    assert nga.rho.shape == (2,)
    nga(torch.randn(6, 2, 4)).square().sum().backward()
    assert (nga.rho.grad != 0).all()


@pytest.mark.parametrize("mode", ["gaussian", "free"])
def test_nga_and_fusion_stay_fp32_under_autocast(mode) -> None:
    nga, fusion = NeighbourhoodGaussian(STAGES, depth=12, mode=mode), StageFusion(3)
    u = torch.randn(8, 2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        fused = fusion(nga(u))
    assert fused.dtype == torch.float32
    assert_close(fused, fusion(nga(u)), atol=0, rtol=0)


def test_nga_bad_arguments_are_reported_together() -> None:
    with pytest.raises(ValueError, match="(?s)mode is 'gauss'.*offset is 2.*sigma_min is 2.0"):
        NeighbourhoodGaussian(STAGES, depth=12, mode="gauss", offset=2, sigma_min=2.0)
    with pytest.raises(ValueError, match="at least one block"):
        NeighbourhoodGaussian([(1,), ()], depth=12)
    with pytest.raises(ValueError, match="features of 7 blocks; expected 8"):
        NeighbourhoodGaussian(STAGES, depth=12)(torch.randn(7, 2, 5))


@pytest.mark.parametrize(
    ("n_stages", "init", "expected"),
    [
        (3, "last", [0.1065, 0.1065, 0.7870]),
        (4, "last", [0.0963, 0.0963, 0.0963, 0.7112]),
        (4, "uniform", [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_fusion_initial_weights_equal_the_golden_values(n_stages, init, expected) -> None:
    weights = StageFusion(n_stages, init=init).weights().detach()
    assert_close(weights, torch.tensor(expected), atol=1e-4, rtol=0)


def test_fusion_modes() -> None:
    logits = torch.randn(3, 2, 4)
    fusion = StageFusion(3)
    assert_close(fusion(logits), torch.einsum("s,sbc->bc", fusion.weights(), logits))
    assert_close(StageFusion(3, mode="sum")(logits), logits.sum(dim=0))
    assert_close(StageFusion(3, mode="last")(logits), logits[-1])
    assert fusion.beta.dtype == torch.float32


@pytest.mark.parametrize("mode", ["softmax", "sum", "last"])
def test_fusion_of_one_stage_is_the_identity_without_parameters(mode) -> None:
    fusion = StageFusion(1, mode=mode)
    logits = torch.randn(1, 1, 2)
    assert torch.equal(fusion(logits), logits[0])
    assert not list(fusion.parameters())


def test_fusion_wrong_input_raises() -> None:
    with pytest.raises(ValueError, match="mode 'mean'"):
        StageFusion(3, mode="mean")
    with pytest.raises(ValueError, match="logits of 2 stages; expected 3"):
        StageFusion(3)(torch.randn(2, 1, 4))
