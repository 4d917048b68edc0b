import numpy as np
import pytest
import torch
from torch.nn import functional

from speculative.speculators import SpeculatorConfig, build
from speculative.training import objective, states
from speculative.training.acceptance import Acceptance, accepted_lengths, sums, walk
from speculative.training.errors import TrainingError
from speculative.training.generations import Sampling, continue_prompts
from speculative.training.objective import Objective, start_from
from speculative.training.states import Kept, Run, load_model, tokens_of
from swiftkv.data import Epoch

CPU = torch.device("cpu")


@pytest.fixture
def head():
    torch.manual_seed(1)
    speculator = build(SpeculatorConfig.lstm(32, 16, 8192, 3, scale_input=True))
    speculator.reset_parameters()
    return speculator


@pytest.fixture
def sequences(table):
    epoch = Epoch.make(table.lengths, 64, 3, 0)
    return [epoch[i] for i in range(len(epoch))]


class TestStates:
    def test_a_state_gave_its_token(self, model, sequences, table):
        """State j is the row whose logits token j was chosen from: for greedy rows, their argmax."""
        found = Run(model, table)(sequences)
        tokens, left = tokens_of(table, sequences)
        said = model.lm_head(found).argmax(-1)
        rows = np.concatenate(sequences)
        greedy = torch.from_numpy(np.repeat(rows % 2 == 0, table.counts[rows]))
        assert torch.equal(said[greedy], tokens[greedy])
        assert not torch.equal(said, tokens)
        assert (left == 0).sum() == len(rows)

    def test_packed_rows_do_not_see_each_other(self, model, sequences, table):
        found = Run(model, table)(sequences)
        alone = torch.cat([Run(model, table)([np.array([row])]) for row in np.concatenate(sequences)])
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)

    def test_kept_on_disk(self, model, sequences, table, tmp_path):
        run, path = Run(model, table), tmp_path / "states"
        calls = []

        def counting(rows):
            calls.append(rows)
            return run(rows)

        def kept():
            return Kept(path, table, 32, torch.float32, CPU)

        assert not kept().fill(counting, 64, 2, stop=lambda: len(calls) == 2)
        assert kept().fill(counting, 64, 2)
        assert len(calls) == -(-len(Epoch.make(table.lengths, 64, 0, 0)) // 2)
        assert kept().fill(counting, 64, 2)
        torch.testing.assert_close(kept()(sequences), run(sequences), atol=1e-4, rtol=1e-4)

    def test_a_head_that_reads_something_else(self, folder, monkeypatch):
        model_class = states.transformers.LlamaForCausalLM
        forward = model_class.forward

        def other(self, *args, **more):
            out = forward(self, *args, **more)
            out.logits = out.logits.flip(-1)
            return out

        monkeypatch.setattr(model_class, "forward", other)
        with pytest.raises(TrainingError, match="does not read what its decoder gives"):
            load_model(str(folder), torch.float32, CPU)


class TestObjective:
    def test_teacher_forcing_is_the_heads_own(self, head):
        """One response: the losses of `Speculator.logits` over the positions that have a token ahead."""
        hidden, tokens = torch.randn(7, 32), torch.randint(0, 8192, (7,))
        losses, right = Objective(head)(hidden, tokens, torch.arange(7).flip(0))
        padded = functional.pad(tokens, (0, 3))
        for index, logits in enumerate(head.logits(hidden[None], padded[None])):
            wanted = tokens[index + 1 :]
            expected = functional.cross_entropy(logits[0, : len(wanted)], wanted, reduction="sum")
            torch.testing.assert_close(losses[index], expected)
            assert right[index] == (logits[0, : len(wanted)].argmax(-1) == wanted).sum()

    def test_drafting_step_by_step_says_the_same(self, head):
        """Where the tokens that came are those of the draft, every step of teacher forcing says them."""
        hidden, first = torch.randn(6, 32), torch.randint(0, 8192, (6,))
        drafts = head.draft(hidden, first)
        tokens = torch.cat([first[:, None], drafts], 1).flatten()
        filled = torch.randn(6, 4, 32)
        filled[:, 0] = hidden
        left = torch.arange(4).flip(0)
        for line in range(6):
            _, right = Objective(head)(filled[line], tokens[4 * line : 4 * line + 4], left)
            alone = torch.tensor([3, 0, 0, 0])  # only the first position drafts the whole; others are random
            accepted = accepted_lengths(
                head.draft(filled[line], tokens[4 * line : 4 * line + 4]),
                tokens[4 * line : 4 * line + 4],
                left,
            )
            assert accepted[0] == alone[0]
            assert (right >= 1).all()

    def test_responses_do_not_run_into_each_other(self, head):
        hidden, tokens = torch.randn(9, 32), torch.randint(0, 8192, (9,))
        left = torch.tensor([3, 2, 1, 0, 0, 1, 0, 1, 0])
        whole = torch.stack(Objective(head)(hidden, tokens, left))
        parts = sum(
            torch.stack(Objective(head)(hidden[a:b], tokens[a:b], left[a:b]))
            for a, b in ((0, 4), (4, 5), (5, 7), (7, 9))
        )
        torch.testing.assert_close(whole, parts)

    def test_parts_change_nothing(self, head, monkeypatch):
        hidden, tokens, left = torch.randn(9, 32), torch.randint(0, 8192, (9,)), torch.arange(9).flip(0)
        model_head = torch.randn(8192, 32)
        for labels in (None, model_head):
            found = []
            for values in (2**26, 2 * 8192):
                monkeypatch.setattr(objective, "LOGITS_AT_A_TIME", values)
                head.zero_grad()
                losses, right = Objective(head, model_head=labels)(hidden, tokens, left)
                losses.sum().backward()
                found.append([losses.detach(), right, *(p.grad.clone() for p in head.parameters())])
            for first, second in zip(*found, strict=True):
                torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)

    def test_the_models_distribution(self, head):
        hidden, tokens, left = torch.randn(4, 32), torch.randint(0, 8192, (4,)), torch.arange(4).flip(0)
        model_head = torch.randn(8192, 32)
        losses, _ = Objective(head, model_head=model_head)(hidden, tokens, left)
        said = head.logits(hidden[None], functional.pad(tokens, (0, 3))[None])[1][0, :2].log_softmax(-1)
        aim = (hidden[2:] @ model_head.T).softmax(-1)
        torch.testing.assert_close(losses[1], -(aim * said).sum())

    def test_a_batch_without_anything_to_say(self, head):
        losses, _ = Objective(head)(torch.randn(2, 32), torch.tensor([1, 2]), torch.tensor([0, 0]))
        losses.sum().backward()
        assert losses.tolist() == [0, 0, 0]

    def test_starting_from_the_model(self, model):
        torch.manual_seed(0)
        speculator = build(SpeculatorConfig.lstm(32, 32, 8192, 3))
        speculator.reset_parameters()
        before = speculator.emb[0].weight.std()
        start_from(speculator, model.get_input_embeddings().weight, model.lm_head.weight)
        assert torch.equal(speculator.head[0].weight, model.lm_head.weight)
        torch.testing.assert_close(speculator.emb[0].weight.std(), before)


class TestAcceptance:
    def test_a_response_step_by_step(self, model, head):
        """The walk, beside a loop that drafts and verifies as an engine does, with the model asked each time."""
        prompt = np.array([5, 6, 7], np.int32)
        [[response]] = continue_prompts(model, [prompt], Sampling((0.0,), 1, 30, True, 0))
        # a head that is right now and then: what comes next is what the model said of the states before
        ids = prompt.tolist()
        text = [*ids, *response.tolist()]
        drafter = _Oracle(response.tolist())
        steps, at = 0, 0  # at: the response's last token that is known
        while at < len(response) - 1:
            draft = drafter(at)
            accepted = 0
            for token in draft:
                with torch.no_grad():
                    said = int(model(torch.tensor([text[: 3 + at + 1 + accepted]])).logits[0, -1].argmax())
                if said != token or at + accepted + 1 >= len(response):
                    break
                accepted += 1
            at += accepted + 1
            steps += 1
        drafts = torch.tensor([drafter(at) for at in range(len(response))])
        left = torch.arange(len(response)).flip(0)
        lengths = accepted_lengths(drafts, torch.from_numpy(response.astype(np.int64)), left)
        assert walk(lengths.numpy()) == steps
        assert 1 < len(response) / steps < 4

    def test_the_sums(self, model, head, table):
        source = Run(model, table)
        whole = Acceptance.of(sums(head, source, table, 64, 2))
        parts = sum(sums(head, source, table, 64, 2, part=part, parts=3) for part in range(3))
        assert Acceptance.of(parts) == whole
        assert whole.responses == 40
        assert whole.tokens == int((table.counts - 1).sum())
        assert whole.steps <= whole.tokens
        assert whole.expected == 1 + sum(whole.accepted)

    def test_past_the_end(self):
        drafts = torch.tensor([[2, 3], [3, 9], [9, 9], [8, 8]])
        tokens, left = torch.tensor([1, 2, 3, 9]), torch.tensor([2, 1, 0, 0])
        assert accepted_lengths(drafts, tokens, left).tolist() == [2, 1, 0, 0]
        assert [walk(np.array(case)) for case in ([0], [0, 0], [2, 1, 0], [0, 1, 0], [1, 0, 0])] == [
            0,
            1,
            1,
            2,
            1,
        ]


class _Oracle:
    """Drafts of three tokens, of which the first `at % 4` are those that come."""

    def __init__(self, response: list[int]) -> None:
        self._response = response

    def __call__(self, at: int) -> list[int]:
        coming = [*self._response[at + 1 : at + 4], 1, 1, 1][:3]
        return [token if place < at % 4 else 1 for place, token in enumerate(coming)]
