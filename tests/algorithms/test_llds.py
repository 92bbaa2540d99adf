"""LLDS and displacement against loops over tokens (docs/algorithms.md)."""

import pytest
import torch

from agentrl.algorithms import displacement, llds_loss
from agentrl.algorithms.llds import GATES, llds_term, noise_of
from agentrl.errors import AlgorithmError


def case(seed=0, B=7, S=12):
    """Random turns with context between them; advantages of both signs and zero."""
    g = torch.Generator().manual_seed(seed)
    turns = torch.full((B, S), -1)
    for i in range(B):
        turn, s = 0, int(torch.randint(0, 3, (1,), generator=g))
        while s < S:
            n = int(torch.randint(1, 4, (1,), generator=g))
            turns[i, s : s + n] = turn
            s += n + int(torch.randint(1, 3, (1,), generator=g))
            turn += 1
    turns[B - 1] = -1  # a response without action tokens
    mask = turns >= 0
    old = -torch.rand(B, S, generator=g)
    new = old + 0.3 * torch.randn(B, S, generator=g)
    answer = mask & (turns == turns.max(1, keepdim=True).values)
    adv = torch.tensor([1.0, 0.0, -1.0, 0.5, -0.2, 0.0, 1.0])[:B, None] * mask
    return new, old, adv, mask, turns, answer


def by_loop(new, old, adv, mask, turns, gate, answer, weight, margin=0.0):
    total, tokens, gates, open_gates = 0.0, 0, 0, 0
    B, S = mask.shape
    for i in range(B):
        here = [s for s in range(S) if mask[i, s]]
        tokens += len(here)
        if any(adv[i, s] < 0 for s in here):
            continue
        d = {s: float(old[i, s] - new[i, s]) for s in here}
        if gate == "action":
            parts = [[s for s in here if turns[i, s] == t] for t in sorted({int(turns[i, s]) for s in here})]
        elif gate == "response":
            parts = [here] if here else []
        else:
            parts = [[s] for s in here]
        for part in parts:
            gates += 1
            if sum(d[s] for s in part) <= margin * len(part) ** 0.5:
                open_gates += gate == "token"
                continue
            open_gates += 1
            total += sum(max(0.0, d[s]) * (weight if answer[i, s] else 1.0) for s in part)
    return total, tokens, gates, open_gates


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(gate, weight, seed):
    new, old, adv, mask, turns, answer = case(seed)
    total, tokens, gates, open_gates = by_loop(new, old, adv, mask, turns, gate, answer, weight)
    options = {"gate": gate, "answer_mask": answer, "answer_weight": weight}
    assert total > 0
    assert float(llds_loss(new, old, adv, mask, turns, **options)) == pytest.approx(total / tokens, rel=1e-5)
    term = llds_term(new, old, adv, mask, turns, **options)
    if gate == "token":
        assert term.gates is None and term.open_gates is None
    else:
        assert (int(term.gates), int(term.open_gates)) == (gates, open_gates)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("margin", [0.01, 0.2, 0.5, float("inf")])
def test_a_gate_opens_above_the_margin(gate, margin):
    new, old, adv, mask, turns, answer = case(2)
    total, _, gates, open_gates = by_loop(new, old, adv, mask, turns, gate, answer, 1.0, margin)
    term = llds_term(new.requires_grad_(), old, adv, mask, turns, gate=gate, margin=margin)
    assert float(term.total.detach()) == pytest.approx(total, rel=1e-5)
    if gate != "token":
        assert (int(term.gates), int(term.open_gates)) == (gates, open_gates)
    if margin == float("inf"):
        term.total.backward()
        assert total == 0 and not new.grad.any()


def test_the_noise_is_that_of_the_turns():
    new, old, _, mask, turns, _ = case(3)
    squares = []
    for i in range(len(mask)):
        for t in {int(x) for x in turns[i] if x >= 0}:
            d = [float(old[i, s] - new[i, s]) for s in range(mask.shape[1]) if turns[i, s] == t]
            squares.append(sum(d) ** 2 / len(d))
    total, count = noise_of(new, old, mask, turns)
    assert float(total) == pytest.approx(sum(squares), rel=1e-5) and int(count) == len(squares)
    d = (old - new).masked_fill(~mask, 0)
    whole = [float(d[i].sum()) ** 2 / int(mask[i].sum()) for i in range(len(mask)) if mask[i].any()]
    total, count = noise_of(new, old, mask, None)
    assert float(total) == pytest.approx(sum(whole), rel=1e-5) and int(count) == len(whole)


@pytest.mark.parametrize("gate", GATES)
def test_the_gradient_is_that_of_open_tokens_only(gate):
    new, old, adv, mask, turns, _ = case(1)
    new.requires_grad_()
    llds_loss(new, old, adv, mask, turns, gate=gate, divisor=1.0).backward()
    kept = mask & ~(adv < 0).any(1, keepdim=True)
    falling = kept & (old > new.detach())
    assert set(new.grad.unique().tolist()) <= {-1.0, 0.0}
    assert not new.grad[~falling].any()
    if gate == "token":
        assert (new.grad[falling] == -1).all()


@pytest.mark.parametrize("gate", GATES)
def test_the_first_update_is_left_alone(gate):
    _, old, adv, mask, turns, _ = case()
    new = old.clone().requires_grad_()
    loss = llds_loss(new, old, adv, mask, turns, gate=gate)
    loss.backward()
    assert float(loss.detach()) == 0 and not new.grad.any()


def test_values_off_action_do_not_matter():
    new, old, adv, mask, turns, _ = case()
    want = llds_loss(new, old, adv, mask, turns)
    hostile = [x.masked_fill(~mask, float("nan")) for x in (new, old, adv)]
    assert torch.equal(llds_loss(*hostile, mask, turns), want)


def test_micro_batches_sum_to_the_batch():
    new, old, adv, mask, turns, _ = case()
    whole = llds_loss(new, old, adv, mask, turns)
    parts = [
        llds_loss(*(x[i] for x in (new, old, adv, mask, turns)), divisor=mask.sum())
        for i in torch.randperm(len(new)).split(3)
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


def test_bad_input():
    new, old, adv, mask, turns, _ = case()
    with pytest.raises(AlgorithmError, match=r"gate 'turn' does not exist; .*known: action, response, token"):
        llds_loss(new, old, adv, mask, turns, gate="turn")
    with pytest.raises(AlgorithmError, match=r"answer_weight is 0\.5, but there is no answer_mask"):
        llds_loss(new, old, adv, mask, turns, answer_weight=0.5)
    with pytest.raises(AlgorithmError, match=r"^the action gate needs turn_ids; pass .* token gate$"):
        llds_term(new, old, adv, mask, None)


# ----------------------------------------------------------------------------------------------------- displacement


@pytest.mark.parametrize("seed", range(3))
def test_displacement_equals_the_loop(seed):
    new, old, _, mask, turns, _ = case(seed)
    groups = torch.tensor([5, -2, 5, 5, -2, 9, 5])
    correct = torch.tensor([True, True, False, True, False, False, True])
    hostile = new.masked_fill(~mask, float("nan"))
    got = displacement(old, hostile, mask, groups, correct, turn_ids=turns)
    assert got.groups.tolist() == [-2, 5]  # group 9 has no correct response
    for k, group in enumerate((-2, 5)):
        rows = [i for i in range(len(groups)) if groups[i] == group and correct[i]]
        change = [[(int(turns[i, s]), float(new[i, s] - old[i, s])) for s in range(12) if mask[i, s]] for i in rows]
        sums = [sum(d for _, d in c) for c in change]
        means = [sum(d for _, d in c) / len(c) if c else 0.0 for c in change]
        assert float(got.per_response[k]) == pytest.approx(sum(sums) / len(rows), abs=1e-6)
        assert float(got.per_token[k]) == pytest.approx(sum(means) / len(rows), abs=1e-6)
        for t in range(got.per_turn.shape[1]):
            of_turn = [d for c in change for turn, d in c if turn == t]
            if of_turn:
                assert float(got.per_turn[k, t]) == pytest.approx(sum(of_turn) / len(rows), abs=1e-6)
            else:
                assert got.per_turn[k, t].isnan()
    assert got.share() == sum(float(x) <= 0 for x in got.per_response) / 2
    assert got.share(float("inf")) == 1.0


def test_displacement_without_correct_responses():
    new, old, _, mask, turns, _ = case()
    got = displacement(old, new, mask, torch.zeros(7).long(), torch.zeros(7, dtype=torch.bool), turn_ids=turns)
    assert len(got.groups) == 0 and got.share() is None


def test_no_change_counts_as_displaced_and_one_token_is_divided_by_one():
    one, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    assert displacement(one, one, mask, torch.zeros(1).long(), mask[0]).share() == 1.0  # Δ(x) ≤ ε
    assert float(llds_loss(one - 0.5, one, one, mask, one.long())) == 0.5
    nobody = torch.zeros(0, 3)
    term = llds_term(nobody, nobody, nobody, nobody > 0, nobody.long())
    assert (float(term.total), int(term.gates), int(term.open_gates)) == (0.0, 0, 0)


def test_displacement_of_each_response():
    old, correct = torch.zeros(3, 3), torch.tensor([True, False, True])
    new = torch.tensor([[0.5, 9.0, 9.0], [7.0, 7.0, 7.0], [1.0, -3.0, 9.0]])
    mask = torch.tensor([[True, False, False], [True, True, True], [True, True, False]])
    with torch.device("meta"):  # a tensor that is made without a device holds nothing
        got = displacement(old, new, mask, torch.tensor([4, 4, 7], device="cpu"), correct)
    assert got.per_turn is None and got.rows.tolist() == [0, 2]
    assert got.change.tolist() == [[0.5, 0.0, 0.0], [1.0, -3.0, 0.0]]
    assert got.row_per_token.tolist() == [0.5, -1.0] and got.of_group == {4: 0.5, 7: -1.0}


def test_a_turn_in_which_no_correct_response_acted_has_no_number():
    one, mask = torch.ones(2, 2), torch.tensor([[False, False], [True, True]])
    turns = torch.tensor([[-1, -1], [0, 1]])
    got = displacement(one, one + 1, mask, torch.tensor([0, 1]), torch.tensor([True, True]), turn_ids=turns)
    assert got.per_turn[0].isnan().all() and got.per_turn[1].tolist() == [1.0, 1.0]
