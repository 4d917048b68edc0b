import json
import shutil
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from swiftkv import distillation, training
from swiftkv.checkpoint import ADDED, Checkpoint
from swiftkv.convert import convert
from swiftkv.data import Batch, Table
from swiftkv.distill import distill, main
from swiftkv.distillation import Distillation, divergence, load
from swiftkv.encoding import Rows
from swiftkv.errors import SwiftKVError


def report(folder) -> dict:
    return json.loads((Path(folder) / "distillation.json").read_text())


class TestLosses:
    @pytest.fixture
    def batch(self, rows, tokenizer, tmp_path):
        table = Table.make(Rows.open(rows), tokenizer, 128, tmp_path / "t")
        return Batch.pack(table, [torch.arange(3).numpy(), torch.arange(3, 5).numpy()])

    def test_they_are_the_papers(self, llama, model, batch):
        """Row by row, with the base loaded by itself."""
        base = transformers.AutoModelForCausalLM.from_pretrained(llama).eval()
        twin = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
        expected = torch.zeros(2)
        for line in range(2):
            starts = [*torch.nonzero(batch.positions[line] == 0).flatten().tolist(), batch.ids.shape[1]]
            for start, end in pairwise(starts):
                if not batch.real[line, start]:
                    continue
                ids = batch.ids[line : line + 1, start:end]
                with torch.no_grad():
                    teacher, student = (m(ids, output_hidden_states=True) for m in (base, twin))
                t, s = (out.logits[0, batch.predicts[line, start:end]] / 3 for out in (teacher, student))
                p = t.softmax(-1)
                expected[0] += 9 * (p * (p.log() - s.softmax(-1).log())).sum()
                gap = teacher.hidden_states[-2] - student.hidden_states[-2]
                expected[1] += gap.square().mean(-1).sum()
        both = Distillation(load(Checkpoint.open(model), torch.float32), temperature=3.0)
        found = torch.stack(both(batch))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    def test_chunks_change_nothing(self):
        torch.manual_seed(0)
        head = nn.Linear(8, 50, bias=False)
        teacher, student = torch.randn(2, 13, 8)
        gradients = []
        for chunk in (13, 5, 1):
            ours = student.clone().requires_grad_(True)
            loss = divergence(ours, teacher, head, 2.0, chunk=chunk)
            loss.backward()
            gradients.append((loss.detach(), ours.grad))
        for loss, gradient in gradients[1:]:
            torch.testing.assert_close(loss, gradients[0][0])
            torch.testing.assert_close(gradient, gradients[0][1])
        target, found = ((x @ head.weight.T / 2).log_softmax(-1) for x in (teacher, student))
        naive = 4 * functional.kl_div(found, target, log_target=True, reduction="sum")
        torch.testing.assert_close(gradients[0][0], naive)

    def test_no_token_that_counts(self):
        states = torch.zeros(0, 8, requires_grad=True)
        loss = divergence(states, states.detach(), nn.Linear(8, 50), 2.0)
        loss.backward()
        assert loss == 0

    @pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
    def test_what_is_trained(self, make_base, tmp_path, batch, family):
        folder = convert(make_base(family, dtype=torch.bfloat16), 2, tmp_path / "m", key_value_group_size=2)
        both = Distillation(load(Checkpoint.open(folder), torch.bfloat16), autocast=True)
        both.train_added()
        both.train()
        losses = both(batch)
        assert [loss.dtype for loss in losses] == [torch.float32] * 2
        sum(losses).backward()
        added = set(load_file(folder / ADDED))
        for name, parameter in both.model.named_parameters():
            assert parameter.requires_grad == (name in added)
            assert parameter.dtype == (torch.float32 if name in added else torch.bfloat16)
            assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in added), name

    def test_gradient_checkpointing_changes_nothing(self, model, batch):
        gradients = []
        for on in (False, True):
            both = Distillation(load(Checkpoint.open(model), torch.float32))
            both.train_added(gradient_checkpointing=on)
            both.train()
            sum(both(batch)).backward()
            gradients.append([p.grad for p in both.parameters() if p.requires_grad])
        for plain, checkpointed in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, checkpointed)


class TestTeacher:
    def test_a_folder_without_its_base(self, llama, model, tmp_path):
        """Once the base's projections are gone, they are read from the base."""
        import re

        from swiftkv import checkpoint

        source = Checkpoint.open(model)
        gone = re.compile(r"layers\.[2-5]\.self_attn\.[qkv]_proj\.")
        kept = {name: source.tensor(name) for name in source.names if not gone.search(name)}
        bare = checkpoint.write(source, kept, tmp_path / "bare")
        # write keeps what it is not given, so take the shard away
        index = json.loads((bare / checkpoint.INDEX).read_text())
        index["weight_map"] = {n: f for n, f in index["weight_map"].items() if f == ADDED}
        (bare / checkpoint.INDEX).write_text(json.dumps(index))
        with pytest.raises(SwiftKVError, match="name the base with --teacher"):
            load(Checkpoint.open(bare), torch.float32)
        whole = load(source, torch.float32).state_dict()
        found = load(Checkpoint.open(bare), torch.float32, teacher=Checkpoint.open(llama)).state_dict()
        assert whole.keys() == found.keys()
        assert all(torch.equal(whole[name], found[name]) for name in whole)

    def test_another_base(self, model, make_base):
        other = make_base("llama", hidden_size=16)
        with pytest.raises(SwiftKVError, match="is not the base of"):
            load(Checkpoint.open(model), torch.float32, teacher=Checkpoint.open(other))

    @pytest.mark.parametrize(
        "changed", ["layers.0.mlp.down_proj", "layers.4.self_attn.o_proj", "embed_tokens"]
    )
    def test_another_model_with_the_same_norms(self, model, llama, tmp_path, changed):
        """Merged adapters and many fine-tunes leave the norms as they are."""
        other = Path(shutil.copytree(llama, tmp_path / "other"))
        weights = load_file(other / "model.safetensors")
        weights[f"model.{changed}.weight"] += 0.01
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(SwiftKVError, match=f"{changed}.weight differs"):
            load(Checkpoint.open(model), torch.float32, teacher=Checkpoint.open(other))

    def test_a_folder_that_lacks_what_was_added(self, settings, model, tmp_path):
        """transformers would make it up. It is found before the rows are tokenised."""
        folder = Path(shutil.copytree(model, tmp_path / "lacking"))
        added = load_file(folder / ADDED)
        gone = "model.layers.4.self_attn.k_proj_swiftkv.weight"
        save_file({n: t for n, t in added.items() if n != gone}, folder / ADDED, metadata={"format": "pt"})
        with pytest.raises(
            SwiftKVError, match=f"lacks 1 of the 9 tensors that SwiftKV adds, the first is {gone}"
        ):
            load(Checkpoint.open(folder), torch.float32)
        with pytest.raises(SwiftKVError, match="lacks 1 of"):
            distill(settings(model=str(folder)))
        assert not settings().work.exists()

    def test_no_swiftkv_model(self, llama):
        with pytest.raises(SwiftKVError, match="is no SwiftKV model"):
            load(Checkpoint.open(llama), torch.float32)


class TestRun:
    def test_it_learns_and_writes_a_model(self, settings, model, llama, rows):
        out = distill(settings(heldout=str(rows), evaluate_every=9, epochs=6))
        found = report(out)
        curve, heldout = found["curve"], found["heldout"]
        assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
        assert [point["step"] for point in heldout][:2] == [0, 9]
        assert heldout[-1]["step"] == found["steps"]
        assert heldout[-1]["equal_next_token"] > heldout[0]["equal_next_token"]
        assert found["tokens"] == curve[-1]["tokens"] > 0
        assert not out.with_name("out.resume").exists()

        before, after = (load_file(folder / ADDED) for folder in (model, out))
        assert before.keys() == after.keys()
        assert not any(torch.equal(before[name], after[name]) for name in before)
        assert (out / "model-base.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()
        for keep in (False, True):
            config = transformers.AutoConfig.from_pretrained(out)
            config.keep_base_projections = keep
            twin, info = transformers.AutoModelForCausalLM.from_pretrained(
                out, config=config, output_loading_info=True
            )
            assert not info["missing_keys"]
            assert torch.equal(twin.model.norm_swiftkv.weight, after["model.norm_swiftkv.weight"])

    def test_passes_and_sizes_of_batches_change_nothing(self, settings, tmp_path):
        outs = [
            distill(settings(out=str(tmp_path / f"{size}"), batch_size=size, gradient_accumulation=4 // size))
            for size in (1, 2, 4)
        ]
        first, *others = (load_file(out / ADDED) for out in outs)
        for other in others:
            for name in first:
                torch.testing.assert_close(first[name], other[name], atol=2e-5, rtol=1e-3)

    def test_one_row(self, settings, write_rows, pairs):
        out = distill(settings(data=str(write_rows(pairs[:1], "one.jsonl")), epochs=2, link=True))
        assert report(out)["steps"] == 2
        assert (out / "model-base.safetensors").is_symlink()

    def test_the_clock_ends_it(self, settings):
        found = report(distill(settings(epochs=10**4, minutes=0.02)))
        assert 0 < found["steps"] < 10**4
        assert found["curve"][-1]["learning_rate"] < 3e-4

    def test_the_clock_stands_still_while_it_measures(self, settings, rows, monkeypatch):
        monkeypatch.setattr(training.Trainer, "_measure", lambda trainer: time.sleep(0.4))
        assert report(distill(settings(epochs=10**4, minutes=0.005, heldout=str(rows))))["steps"] > 1

    def test_a_loss_that_is_no_number(self, settings):
        with pytest.raises(SwiftKVError, match="lower --learning-rate"):
            distill(settings(learning_rate=1e30, clip_norm=1e30, warmup_ratio=0.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"warmup_ratio": 1.0}, "--warmup-ratio"),
        ({"hidden_weight": -1.0}, "--hidden-weight"),
        ({"decay": "steps"}, "cosine or linear"),
        ({"evaluate_every": 5}, "without --heldout"),
        ({"sequence_length": 1}, "--sequence-length"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_settings_that_make_no_sense(settings, changes, message):
    with pytest.raises(SwiftKVError, match=message):
        settings(**changes)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_the_learning_rate(settings, decay):
    chosen = settings(decay=decay, warmup_ratio=0.1, learning_rate=1.0)
    rates = [chosen.rate(i / 1000) for i in range(1001)]
    assert rates[0] == 0
    assert rates[100] == max(rates) == pytest.approx(1.0)
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[550] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0)


def test_requests_that_make_no_sense(settings, llama, tmp_path, capsys):
    flags = ["--data", settings().data, "--out", str(tmp_path / "out")]
    assert main(["--model", str(llama), *flags, "--sequence-length", "128"]) == 2
    assert "is no SwiftKV model" in capsys.readouterr().err
    assert main(["--model", settings().model, *flags, "--sequence-length", "513"]) == 2
    assert "the model has 512 positions" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    assert main(["--model", settings().model, *flags]) == 2
    assert "not empty" in capsys.readouterr().err


def test_logits_are_made_in_parts(monkeypatch):
    monkeypatch.setattr(distillation, "LOGITS_AT_A_TIME", 100)
    widths = []

    class Head(nn.Linear):
        def forward(self, x):
            widths.append(len(x))
            return super().forward(x)

    states = torch.randn(7, 4, requires_grad=True)
    divergence(states, states.detach(), Head(4, 50), 1.0).backward()
    assert max(widths) == 2


def test_sequences_are_no_longer_than_the_model_takes(settings):
    unsaid = settings(sequence_length=None)
    assert unsaid.for_positions(512).sequence_length == 512
    assert unsaid.for_positions(131_072).sequence_length == unsaid.for_positions(None).sequence_length == 8192
    assert settings(sequence_length=100).for_positions(512).sequence_length == 100
