import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from speculative.training import generations
from speculative.training.errors import TrainingError
from speculative.training.generations import Sampling, choose, continue_prompts, generate, read
from speculative.training.prompts import Prompts

GREEDY = Sampling((0.0,), 10, 12, False, 0)


@pytest.fixture
def asked():
    rng = np.random.default_rng(1)
    return [rng.integers(4, 8192, size).astype(np.int32) for size in (3, 9, 1, 5, 5, 2, 7, 4)]


def plain(model, prompt, ends, limit=12) -> list[int]:
    """Greedy, without a cache and without a batch."""
    ids = prompt.tolist()
    with torch.no_grad():
        for _ in range(limit):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return ids[len(prompt) :]


class TestContinuations:
    def test_greedy_is_greedy_whatever_the_batch(self, model, asked, monkeypatch):
        """Padding on the left, rows that end early and leave: each as if it were alone."""
        ends = [plain(model, prompt, [])[at] for at, prompt in zip((0, 2, 5, 3), asked, strict=False)]
        monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
        expected = [plain(model, prompt, ends) for prompt in asked]
        assert len(set(map(len, expected))) > 2
        found = continue_prompts(model, asked, GREEDY)
        assert [[line.tolist() for line in lines] for lines in found] == [[ids] for ids in expected]

    def test_once_at_each_temperature(self, model, asked):
        torch.manual_seed(0)
        found = continue_prompts(model, asked, Sampling((0.0, 2.0, 0.0), 50, 12, True, 0))
        for lines in found:
            assert lines[0].tolist() == lines[2].tolist()
            assert [len(line) for line in lines] == [12] * 3
        assert any(lines[0].tolist() != lines[1].tolist() for lines in found)

    def test_choice(self):
        torch.manual_seed(0)
        logits = torch.tensor([0.0, 3.0, 2.0, 1.0]).repeat(20_000, 1)
        assert set(choose(logits[:9], torch.zeros(9), 3).tolist()) == {1}
        drawn = choose(logits, torch.full((20_000,), 2.0), 3)
        shares = torch.bincount(drawn, minlength=4) / 20_000
        expected = torch.tensor([-torch.inf, 1.5, 1.0, 0.5]).softmax(0)
        torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)


class TestFiles:
    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch):
        monkeypatch.setattr(generations, "PART_PROMPTS", 3)

    @staticmethod
    def rows(folder):
        return [row[0].ids.tolist() for row in read(generations.files_of(folder))]

    def test_stopped_or_shared_it_is_the_same(self, model, asked, tmp_path):
        sampling = Sampling((0.0, 1.0), 5, 4, False, 7)
        more = {"batch_size": 2, "about": {"model": "m"}}
        whole, stopped, shared = (tmp_path / name for name in ("whole", "stopped", "shared"))
        assert generate(model, iter(asked), sampling, whole, **more)
        assert not generate(model, iter(asked), sampling, stopped, **more, stop=lambda: True)
        assert len(generations.files_of(stopped)) == 1
        assert generate(model, iter(asked), sampling, stopped, **more)
        for part in (1, 0):
            assert generate(model, iter(asked), sampling, shared, **more, part=part, parts=2)
        assert self.rows(whole) == self.rows(stopped) == self.rows(shared)
        assert len(self.rows(whole)) == 2 * len(asked)

    def test_another_runs_folder(self, model, asked, tmp_path):
        generate(model, iter(asked[:1]), GREEDY, tmp_path, batch_size=2, about={"model": "a"})
        with pytest.raises(TrainingError, match="model was a and is b; remove it or name another"):
            generate(model, iter(asked[:1]), GREEDY, tmp_path, batch_size=2, about={"model": "b"})
        (tmp_path / "generations.json").unlink()
        with pytest.raises(TrainingError, match="leave --prompts out"):
            generate(model, iter(asked[:1]), GREEDY, tmp_path, batch_size=2, about={"model": "a"})

    def test_reading(self, tmp_path):
        table = pa.table({"prompt_ids": [[1, 2], [], [3], None], "response_ids": [[5], [6], [], [7]]})
        pq.write_table(table, tmp_path / "a.parquet")
        first, *others = read(generations.files_of(tmp_path))
        assert (first[0].ids.tolist(), first[0].counted.tolist()) == ([1, 2, 5], [False, False, True])
        assert others == [None] * 3
        pq.write_table(pa.table({"prompt_ids": [[1]], "token_ids": [[2]]}), tmp_path / "b.parquet")
        with pytest.raises(
            TrainingError, match=r"b.parquet has no response_ids \(it has prompt_ids, token_ids\)"
        ):
            list(read(generations.files_of(tmp_path)))
        with pytest.raises(TrainingError, match="no Parquet file at"):
            generations.files_of(tmp_path / "none")

    def test_a_prompt_is_learned_from_or_measured_on(self, written):
        files = generations.files_of(written)
        train, heldout = (list(generations.split(files, 5, heldout=side)) for side in (False, True))
        assert (len(train), len(heldout)) == (32, 8)
        prompts = [{row[0].ids[~row[0].counted].tobytes() for row in rows} for rows in (train, heldout)]
        assert not prompts[0] & prompts[1]


class TestPrompts:
    def write(self, path, *rows) -> str:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def test_chats(self, tokenizer, tmp_path):
        question, answer = (
            {"role": "user", "content": "def f(): pass"},
            {"role": "assistant", "content": "Do."},
        )
        data = self.write(tmp_path / "a.jsonl", {"messages": [question]}, {"messages": [question, answer]})
        asked = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
        found = [ids.tolist() for ids in Prompts(data, tokenizer, window=64, longest=100)]
        assert found == [asked, asked]
        data = self.write(tmp_path / "b.jsonl", {"prompt": question["content"], "response": "not read"})
        assert [ids.tolist() for ids in Prompts(data, tokenizer, window=64, longest=100)] == [asked]

    def test_windows_of_text(self, tokenizer, tmp_path):
        text = "def f(a, b):\n    return a + b\n" * 4
        data = self.write(tmp_path / "a.jsonl", {"text": text}, {"text": ""})
        ids = tokenizer(text)["input_ids"]
        found = [window.tolist() for window in Prompts(data, tokenizer, window=8, longest=100)]
        assert found == [ids[at : at + 8] for at in range(0, len(ids) - 7, 8)]

    def test_too_long(self, tokenizer, prompts):
        some = Prompts(str(prompts), tokenizer, window=64, longest=5)
        assert list(some) == []
        assert some.left_out == 24

    def test_unknown_columns(self, tokenizer, tmp_path):
        data = self.write(tmp_path / "a.jsonl", {"question": "?"})
        with pytest.raises(TrainingError, match="has the columns question"):
            Prompts(data, tokenizer, window=8, longest=8)
