"""Proposition 1: heads made for it and against it, and what real blocks are and do."""

import copy

import pytest
import torch
from conftest import make_vit, random_images
from timm.layers import AttentionRope

from nslib.analysis.attention_survey import (
    STAGES,
    _heads_output,
    _responses,
    read_heads,
    remains_table,
    spectrum_table,
    symmetry_table,
    with_heads,
)
from nslib.analysis.proposition import proposition_table, remark_table, unnecessary_table, violated
from nslib.nullspace.attention import ConditionViolated, Heads, HeadsNullspace, check_conditions, proof_direction
from nslib.nullspace.heads import construct_heads, deficient_heads, shift_invariant_heads, split_symmetric
from nslib.runtime import generator

CASES = ((8, 2), (12, 12), (12, 3), (48, 3), (96, 8))
EACH = pytest.mark.parametrize(("width", "num_heads"), CASES)
WIDE = pytest.mark.parametrize(("width", "num_heads"), [c for c in CASES if c[0] > c[1]])


def made(width=12, num_heads=3, breaking=None, seed=0) -> Heads:
    return construct_heads(width, num_heads, generator=generator(seed), breaking=breaking)


def tokens(width, seed=1):
    return torch.randn(3, 10, width, generator=generator(seed), dtype=torch.float64)


def multiples_of(w, *, alike=False):
    """(10, D): each row another multiple of w, or all of them the same; as large as the tokens."""
    factors = torch.ones(10, 1) if alike else torch.randn(10, 1, generator=generator(2))
    return factors.double() * w * len(w) ** 0.5


# The proposition


@EACH
@pytest.mark.parametrize("seed", [0, 1])
def test_the_proofs_w_leaves_every_head_as_it_was(width, num_heads, seed):
    heads = made(width, num_heads, seed=seed)
    check_conditions(heads)
    w = proof_direction(heads)
    assert w.norm().item() == pytest.approx(1)
    assert heads.change(tokens(width), multiples_of(w)) < 1e-12
    assert heads.change(tokens(width), multiples_of(torch.randn(width, generator=generator(3)).double())) > 0.1


def test_outputs_are_attention_by_torch():
    heads, x = made(), tokens(12)
    query, key, value = (torch.stack([x @ w for w in kind], 1) for kind in (heads.query, heads.key, heads.value))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(heads.outputs(x), expected, atol=1e-12)


@EACH
def test_constructed_heads_have_full_rank_and_meet_the_dimension_count(width, num_heads):
    """dim of the sum of row spaces <= h d_k - 1, Eq. (9)."""
    heads = made(width, num_heads)
    assert torch.linalg.matrix_rank(heads.scores).tolist() == [width // num_heads] * num_heads
    assert torch.linalg.matrix_rank(heads.scores.flatten(0, 1)).item() == width - 1
    assert (heads.scores - heads.scores.mT).abs().max() < 1e-12


@WIDE
@pytest.mark.parametrize("breaking", [1, 2])
def test_without_symmetry_or_inclusion_the_proofs_w_changes_a_head(width, num_heads, breaking):
    heads = made(width, num_heads, breaking)
    with pytest.raises(ConditionViolated, match=rf"condition {breaking} is violated by head 0"):
        check_conditions(heads)
    assert heads.change(tokens(width), multiples_of(proof_direction(heads))) > 1e-2


@EACH
def test_without_a_shared_row_there_is_no_w(width, num_heads):
    heads = made(width, num_heads, breaking=3)
    remedy = "give one head a row of another's, as construct_heads does, or"
    with pytest.raises(
        ConditionViolated, match=f"condition 3 is violated: no row of any head.*: {remedy} ask HeadsNullspace"
    ):
        check_conditions(heads)
    with pytest.raises(
        ConditionViolated,
        match=rf"condition 3 is violated: the rows of Q_i K_i.* all {width}.*: {remedy} take HeadsNullspace\(heads\)",
    ):
        proof_direction(heads)
    assert HeadsNullspace(heads).smallest.shape == (width,)


@pytest.mark.parametrize("breaking", [None, 1, 2, 3])
def test_only_the_condition_asked_for_is_broken(breaking):
    """Mending it by hand leaves nothing to object to."""
    heads = made(12, 3, breaking)
    assert violated(heads) == str(breaking or "none")
    if breaking == 1:
        heads = Heads(heads.key, heads.key, heads.value)  # K K^T: row space as before
        row = heads.scores[0, 0]
        assert violated(heads) in ("none", "3")  # the shared row was one of Q_0 K_0^T
        outside = row - row @ heads.key[0] @ torch.linalg.pinv(heads.key[0])
        assert outside.norm() < 1e-12
    if breaking == 2:
        heads = Heads(heads.query, heads.key, heads.key)
        assert violated(heads) == "none"


def test_the_violating_head_is_named():
    heads = made(12, 3)
    query, value = heads.query.clone(), heads.value.clone()
    query[2, 0] += 1
    value[1, 0] += 1
    with pytest.raises(ValueError, match=r"condition 1 is violated by head 2: Q K.* expected a symmetric matrix"):
        check_conditions(Heads(query, heads.key, heads.value))
    with pytest.raises(ValueError, match=r"condition 2 is violated by head 1: .* outside the row space"):
        check_conditions(Heads(heads.query, heads.key, value))


def in_type(heads: Heads, dtype: torch.dtype) -> Heads:
    return Heads(*(w.to(dtype) for w in (heads.query, heads.key, heads.value)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("width", "num_heads"), [(12, 3), (48, 3), (192, 12)])
def test_weights_of_less_precision_meet_the_conditions(width, num_heads, dtype):
    heads = in_type(made(width, num_heads), dtype)
    check_conditions(heads)
    w = proof_direction(heads)
    assert w.dtype == dtype
    limit = 300 * torch.finfo(dtype).eps
    assert heads.double().change(tokens(width), multiples_of(w.double())) < limit
    for breaking in (1, 2):
        assert violated(in_type(made(width, num_heads, breaking), dtype)) == str(breaking)


def test_no_shared_row_in_float32():
    heads = in_type(made(12, 3, breaking=3), torch.float32)
    assert violated(heads) == "3"
    with pytest.raises(ConditionViolated, match=r"condition 3 is violated: the rows of Q_i K_i.* all 12"):
        proof_direction(heads)


def test_a_zero_head_is_symmetric_and_shares_no_row():
    heads = made(48, 3)
    nothing = torch.ones(3, 1, 1).double()
    nothing[2] = 0
    with pytest.raises(ConditionViolated, match=r"condition 2 is violated by head 2: 1 of V.* lies outside"):
        check_conditions(Heads(heads.query * nothing, heads.key, heads.value))
    check_conditions(Heads(heads.query * nothing, heads.key, heads.value * nothing))  # 0 and 1 share a row
    alone = torch.zeros(3, 1, 1).double()
    alone[0] = 1
    with pytest.raises(ConditionViolated, match=r"nearest, of head 0, is 1 of its norm outside that of head 1"):
        check_conditions(Heads(heads.query * alone, heads.key, heads.value * alone))


def test_condition_3_needs_two_heads_and_a_row():
    heads = made(48, 3)
    with pytest.raises(ConditionViolated, match=r"condition 3 .* got 3 in all and 0 with such a row: take two or more"):
        check_conditions(Heads(heads.query * 0, heads.key, heads.value * 0))
    key = torch.linalg.qr(torch.randn(6, 6, generator=generator(0), dtype=torch.float64)).Q.unsqueeze(0)
    with pytest.raises(ConditionViolated, match=r"condition 3 .* got 1 in all and 1 with such a row"):
        check_conditions(Heads(key, key, key))


@WIDE
def test_a_rank_deficient_head_needs_no_shared_row(width, num_heads):
    heads = deficient_heads(width, num_heads, generator=generator(0))
    assert violated(heads) == "3"
    assert heads.change(tokens(width), multiples_of(proof_direction(heads))) < 1e-12


@WIDE
def test_softmax_spares_symmetry_if_all_rows_are_alike(width, num_heads):
    heads, w = shift_invariant_heads(width, num_heads, generator=generator(0))
    assert violated(heads) == "1"
    symmetric = Heads(heads.key, heads.key, heads.value)
    assert violated(symmetric) in ("none", "3")  # 2 holds
    assert (heads.key.mT @ w).norm(dim=1).min() > 1e-3
    assert heads.change(tokens(width), multiples_of(w, alike=True)) < 1e-12
    assert heads.change(tokens(width), multiples_of(w)) > 1e-2


def test_shift_invariant_heads_keep_the_shared_row():
    heads, _ = shift_invariant_heads(12, 3, generator=generator(0))
    row = heads.scores[0, 0]
    space = heads.key[1]  # orthonormal
    assert (row - row @ space @ space.T).norm() < 1e-12 < row.norm()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_eigendecomposition_split_between_query_and_key(dtype, atol):
    values = torch.tensor([3.0, -2.0, 0.5, 0, 0], dtype=dtype)
    vectors = torch.linalg.qr(torch.randn(5, 5, generator=generator(0), dtype=dtype)).Q
    matrix = vectors @ values.diag() @ vectors.T
    query, key = split_symmetric(matrix, 3)
    assert query.shape == key.shape == (5, 3)
    assert torch.allclose(query @ key.T, matrix, atol=atol)
    assert torch.allclose(query.norm(dim=0), values[[0, 1, 2]].abs().sqrt())
    with pytest.raises(ValueError, match="rank <= 2, the size of a head, got rank 3"):
        split_symmetric(matrix, 2)
    matrix[0, 1] += 1
    with pytest.raises(ValueError, match="must be symmetric, got one that differs from its transpose by 1"):
        split_symmetric(matrix, 3)


# The common nullspace


def test_common_nullspace_holds_the_proofs_w():
    heads = made(48, 3)
    null = HeadsNullspace(heads)
    assert null.dim == 1
    assert null.basis.shape == (48, 1)
    assert abs(null.basis[:, 0] @ proof_direction(heads)).item() == pytest.approx(1)
    assert torch.equal(null.smallest, null.basis[:, 0])
    assert [HeadsNullspace(made(48, 3, breaking)).dim for breaking in (1, 2, 3)] == [0, 0, 0]


def test_common_nullspace_of_full_rank_heads_is_that_of_their_factors():
    """Rank 9 of 12 by hand: all queries, keys and values avoid three directions."""
    basis = torch.linalg.qr(torch.randn(12, 12, generator=generator(0), dtype=torch.float64)).Q
    draws = (torch.randn(3, 9, 4, generator=generator(s), dtype=torch.float64) for s in (1, 2, 3))
    null = HeadsNullspace(Heads(*(basis[:, :9] @ w for w in draws)))
    assert null.dim == 3
    assert torch.linalg.svdvals(null.basis.T @ basis[:, 9:]).min().item() == pytest.approx(1)


def test_tolerance_follows_the_type_of_the_weights():
    heads = made(48, 3)
    single = Heads(*(w.float() for w in (heads.query, heads.key, heads.value)))
    assert HeadsNullspace(single).dim == 1  # float32 rounding is not float64 rank
    assert HeadsNullspace(heads, tol=1e6).dim == 48
    with pytest.raises(ValueError, match="tol must be >= 0, got nan"):
        HeadsNullspace(heads, tol=float("nan"))
    with pytest.raises(ValueError, match="tol must be >= 0, got -1"):
        HeadsNullspace(heads, tol=-1)


# Errors


def test_head_counts_that_do_not_divide_the_width():
    for make in (construct_heads, deficient_heads, shift_invariant_heads):
        with pytest.raises(ValueError, match=r"must divide the width 12, got 5: take one of \[2, 3, 4, 6, 12\]"):
            make(12, 5, generator=generator(0))
        with pytest.raises(ValueError, match="num_heads must be >= 2, since condition 3 compares two heads, got 1"):
            make(12, 1, generator=generator(0))


def test_other_mistakes():
    with pytest.raises(ValueError, match="one of the conditions 1, 2 and 3, got 4"):
        made(breaking=4)
    for make in (deficient_heads, shift_invariant_heads):
        with pytest.raises(ValueError, match="two dimensions or more, got 6 / 6 = 1: take fewer heads"):
            make(6, 6, generator=generator(0))
    w = torch.zeros(2, 6, 3)
    with pytest.raises(ValueError, match=r"must all be \(h, D, d\), got \[\(2, 6, 3\), \(2, 6, 3\), \(2, 6, 2\)\]"):
        Heads(w, w, w[..., :2])
    with pytest.raises(ValueError, match="D = h d, got D = 7, h = 2, d = 3"):
        Heads(*[torch.zeros(2, 7, 3)] * 3)


# The tables


def test_proposition_table():
    table = proposition_table([(12, 3), (48, 3)], inputs=2, seed=0).set_index(["width", "conditions"])
    for width in (12, 48):
        rows = table.loc[width]
        assert rows.named.tolist() == ["none", "1", "2", "3"]
        assert rows.common_dim.tolist() == [1, 0, 0, 0]
        assert rows.change["all three"] < 1e-12
        assert rows.change[["without 1", "without 2"]].min() > 1e-2
        assert rows.change.isna().tolist() == [False, False, False, True]


def test_remark_table():
    table = remark_table([(12, 3), (48, 4)], seed=0)
    assert table[["width", "heads"]].to_numpy().tolist() == [[12, 3], [48, 4]]
    assert table[["product", "asymmetry"]].max(axis=None) < 1e-13


def test_unnecessary_table():
    table = unnecessary_table([(48, 3)], inputs=2, seed=0).set_index(["example", "rows_of_W"])
    assert table.named.tolist() == ["3", "3", "1", "1"]
    assert table.change.drop(("shift of a softmax", "multiples")).max() < 1e-12
    assert table.change["shift of a softmax", "multiples"] > 1e-2


# Real blocks


@pytest.fixture(scope="module")
def model():
    return make_vit("vit_tiny_patch16_224", spread=0.05, qkv_bias=True)


def test_heads_read_from_a_block_are_what_the_block_computes(model):
    attention = copy.deepcopy(model.vit.blocks[1].attn).double()
    attention.qkv.bias.data.zero_()
    attention.proj = torch.nn.Identity()
    double = copy.deepcopy(model).double()
    x = tokens(48)
    with torch.no_grad():
        expected = attention(x)
        found = read_heads(double, 1).outputs(x)
    assert torch.allclose(found.transpose(1, 2).flatten(2), expected, atol=1e-12)


def test_symmetry_by_hand(model):
    made_symmetric = copy.deepcopy(model)
    width = 48
    weight = made_symmetric.vit.blocks[0].attn.qkv.weight.data
    weight[width : 2 * width] = weight[:width]  # K = Q
    table = symmetry_table(made_symmetric).set_index(["block", "head"])
    assert len(table) == 2 * 3
    assert table.asymmetry[0].max() < 1e-6
    assert table.asymmetry[1].between(0.7, 1.4).all()  # independent Q and K
    scores = read_heads(model, 1).scores[2]
    assert table.share[1, 2] == pytest.approx((((scores + scores.T) / 2).norm() ** 2 / scores.norm() ** 2).item())


def test_spectrum_counts_the_null_directions(model):
    heads = made(48, 3)
    planted = copy.deepcopy(model)
    planted.vit.blocks[0] = with_heads(planted.vit.blocks[0], heads)
    table = spectrum_table(planted)
    assert table.groupby("block").null.sum().tolist() == [1, 0]
    assert table.groupby("block").size().tolist() == [48, 48]
    assert table.groupby("block").value.max().tolist() == [1, 1]


def test_planted_heads_keep_the_blocks_norms_and_biases(model):
    block = model.vit.blocks[0]
    planted = with_heads(block, made(48, 3))
    own, new = (b.attn.qkv.weight.detach().chunk(3) for b in (block, planted))
    assert [w.norm().item() for w in new] == pytest.approx([w.norm().item() for w in own])
    assert torch.equal(planted.attn.qkv.bias, block.attn.qkv.bias)
    assert not torch.equal(planted.attn.qkv.weight, block.attn.qkv.weight)


def test_what_a_block_leaves(model):
    table = remains_table(model, random_images(model, 3), strength=1.0, seed=0)
    assert len(table) == 2 * 3 * len(STAGES)
    value = table.set_index(["direction", "stage"]).sort_index().value
    for stage in STAGES[:2]:
        assert value["constructed", stage].max() < 1e-10
    assert value["constructed", "after LayerNorm"].min() > 1e-3
    assert value["constructed", "block"].min() > 0.1
    assert value["random", "heads"].min() > value["smallest", "heads"].max()
    small = remains_table(model, random_images(model, 3), strength=0.01, seed=0)
    assert small.value.max() < table.value.max() / 5


def test_models_whose_heads_cannot_be_read(model):
    with pytest.raises(ValueError, match=r"block must lie in 0..1 for vit_tiny_patch16_224, got 2"):
        read_heads(model, 2)
    normed = make_vit("vit_tiny_patch16_224", qk_norm=True)
    with pytest.raises(TypeError, match="block 0 of vit_tiny_patch16_224 has Attention: expected timm's standard"):
        read_heads(normed, 0)
    other = copy.deepcopy(model)
    other.vit.blocks[1].attn = AttentionRope(48, 3)
    with pytest.raises(TypeError, match="block 1 of vit_tiny_patch16_224 has AttentionRope"):
        read_heads(other, 1)


@pytest.mark.parametrize("size", [1e-9, 1e9])
@pytest.mark.parametrize("breaking", [None, 1, 2, 3])
def test_conditions_do_not_depend_on_the_size_of_the_weights(breaking, size):
    heads = made(12, 3, breaking)
    scaled = Heads(heads.query * size, heads.key, heads.value * size)
    assert violated(scaled) == str(breaking or "none")


def test_constructed_heads_are_symmetric_of_both_signs():
    """Else Q = K would do, and nothing of Remark 1 be tried."""
    values = torch.linalg.eigvalsh(made(48, 3).scores)
    assert (values[:, 0] < -0.4).all()
    assert (values[:, -1] > 0.4).all()


@torch.no_grad()
def test_a_shift_is_as_large_as_what_it_is_added_to(model):
    """Twice the root mean square norm of the tokens, and before the attention of the normalised ones."""
    block = copy.deepcopy(model).double().vit.blocks[0]
    x, shift = 5 * tokens(48), multiples_of(torch.randn(48, generator=generator(3)).double())
    shift = 2 * shift / shift.norm()
    found = _responses(block, x, shift)

    def added(entering):
        return entering + shift * entering.flatten(1).norm(dim=1).square().mean().sqrt()

    acts = {"block": (block, x), "with biases": (lambda u: _heads_output(block.attn, u), block.norm1(x))}
    for stage, (act, start) in acts.items():
        before, after = act(start), act(added(start))
        assert found[stage] == pytest.approx(((after - before).norm() / before.norm()).item())
