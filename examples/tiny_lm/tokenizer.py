"""Train the model's tokenizer and encode the corpus: `python examples/tiny_lm/tokenizer.py --corpus DIR --out DIR`.

The tokenizer is a byte-level BPE of 8,192 tokens, so any text round-trips.  Its pre-tokenizer splits identifiers
at underscores and capitals (so that `user` in `get_user` and in prose is one token), keeps a line break together
with the indentation after it, and keeps digits apart.

The chat template gives one turn the form

    <|user|>\\n{function source}\\n<|assistant|>\\n{docstring}<|end|>

A system message is left out: the model knows one task and no instruction changes it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).resolve().parent))

from extract import is_grounded

VOCAB_SIZE = 8192
PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIALS = (PAD, USER, ASSISTANT, END)
#: CamelCase and lower-case words, capitals, single digits, a line break with its indentation, punctuation, space.
PATTERN = r" ?[A-Z]?[a-z]+| ?[A-Z]+(?![a-z])|\d|\n *| ?_+| ?[^\s\w]+| ?[^\sA-Za-z0-9_]+|\s+"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'].strip('\\n') + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
MAX_POSITIONS = 1024
USUAL_CODE_TOKENS = 384
LONGEST_CODE_TOKENS = 900
#: One long function in this many keeps its length, so that far positions are trained too.
KEEP_LONG_ONE_IN = 6
BATCH = 4096
#: One function in this many comes a second time under a name that says nothing, so that bodies are read too.
ANONYMISE_ONE_IN = 8
BLANK_NAMES = (
    "f",
    "func",
    "foo",
    "g",
    "fn",
    "helper",
    "do_it",
    "run",
    "method",
    "function",
    "compute",
    "process",
)
_DEF = re.compile(r"\bdef (\w+)")


def train(texts: Iterator[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Train the byte-level BPE on an iterator of texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, out: Path) -> None:
    """Write the files that `AutoTokenizer.from_pretrained` reads."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "pad_token": PAD,
        "eos_token": END,
        "additional_special_tokens": [USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a JSON-lines file, compressed or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def code_limit(index: int) -> int:
    """Return how many tokens of its code the example may keep."""
    return LONGEST_CODE_TOKENS if index % KEEP_LONG_ONE_IN == 0 else USUAL_CODE_TOKENS


def frame(
    tokenizer: Tokenizer, code: Sequence[int], doc: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """Put encoded code and summary into the chat template; return the prompt's and the answer's tokens."""
    ids = {name: tokenizer.token_to_id(name) for name in SPECIALS}
    newline = tokenizer.token_to_id("\u010a")
    prompt = [ids[USER], *code]
    if prompt[-1] != newline:
        prompt.append(newline)
    if doc is None:
        return prompt, []
    return [*prompt, ids[ASSISTANT], newline], [*doc, ids[END]]


def encode_rows(
    tokenizer: Tokenizer, rows: Iterator[dict[str, str]], cut: bool = True
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield each row's prompt and answer tokens, long code cut at its limit."""
    index = 0
    while batch := list(islice(rows, BATCH)):
        codes = tokenizer.encode_batch(["\n" + row["code"].strip("\n") + "\n" for row in batch])
        docs = tokenizer.encode_batch([row.get("doc", "") for row in batch])
        for row, code, doc in zip(batch, codes, docs, strict=True):
            ids = code.ids[: code_limit(index)] if cut else code.ids
            yield frame(tokenizer, ids, doc.ids if "doc" in row else None)
            index += 1


def write_arrays(path: Path, encoded: Iterator[tuple[list[int], list[int]]]) -> dict[str, int]:
    """Write the examples: all tokens end to end, and the two lengths of each; return the totals."""
    flat: list[np.ndarray] = []
    lengths: list[tuple[int, int]] = []
    for prompt, answer in encoded:
        flat.append(np.asarray(prompt + answer, dtype=np.uint16))
        lengths.append((len(prompt), len(answer)))
    table = np.asarray(lengths, dtype=np.uint16).reshape(-1, 2)
    header = np.asarray([len(lengths)], dtype=np.uint32).tobytes()
    tokens = np.concatenate(flat)
    with lzma.open(path, "wb", preset=3) as out:
        out.write(header + table.tobytes())
        out.write(tokens.tobytes())
    return {"examples": len(lengths), "tokens": int(tokens.size), "answer_tokens": int(table[:, 1].sum())}


def sample_texts(corpus: Path, every: int) -> Iterator[str]:
    """Yield every n-th example's code, and every summary, for training the BPE."""
    for index, row in enumerate(read_rows(corpus / "train.jsonl.gz")):
        if index % every == 0:
            yield row["code"]
        yield row["doc"]


def anonymised(row: dict[str, str], index: int) -> dict[str, str] | None:
    """Return the row with its function's name blanked, or None when the body alone does not support the summary."""
    found = _DEF.search(row["code"])
    if found is None:
        return None
    blank = BLANK_NAMES[index // ANONYMISE_ONE_IN % len(BLANK_NAMES)]
    code = re.sub(rf"\b{re.escape(found.group(1))}\b", blank, row["code"])
    return {**row, "code": code} if is_grounded(code, row["doc"]) else None


def training_rows(corpus: Path) -> Iterator[dict[str, str]]:
    """Yield the documented functions, and some of them a second time with their name blanked."""
    for index, row in enumerate(read_rows(corpus / "train.jsonl.gz")):
        yield row
        blanked = anonymised(row, index) if index % ANONYMISE_ONE_IN == 0 else None
        if blanked:
            yield blanked


def package_tokens(rows: Iterator[dict[str, str]], path: Path) -> Counter[str]:
    """Count each package's tokens, from the rows in the order in which `write_arrays` wrote them."""
    with lzma.open(path) as encoded:
        count = int(np.frombuffer(encoded.read(4), dtype=np.uint32)[0])
        table = np.frombuffer(encoded.read(4 * count), dtype=np.uint16).reshape(-1, 2)
    totals: Counter[str] = Counter()
    for row, size in zip(rows, table.sum(1, dtype=np.int64).tolist(), strict=True):
        totals[row["package"]] += size
    return totals


def write_packages(corpus: Path, out: Path) -> None:
    """Copy `packages.json`, adding how many tokens of documented functions each package gave."""
    totals = package_tokens(training_rows(corpus), out / "train.bin.xz")
    rows = json.loads((corpus / "packages.json").read_text())
    rows = [{**row, "functions": int(row["functions"]), "tokens": totals[row["name"]]} for row in rows]
    lines = ",\n".join(json.dumps(row) for row in rows)
    (out / "packages.json").write_text(f"[\n{lines}\n]\n")


def plain_rows(corpus: Path, most: int) -> Iterator[dict[str, str]]:
    """Yield at most `most` of the undocumented functions, chosen at random."""
    rows = list(read_rows(corpus / "plain.jsonl.gz"))
    random.Random(5).shuffle(rows)
    yield from rows[:most]


def main() -> None:
    """Parse the command line, train, encode and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sample-every", type=int, default=5)
    parser.add_argument("--plain", type=int, default=80_000, help="undocumented functions to add")
    args = parser.parse_args()
    tokenizer = train(sample_texts(args.corpus, args.sample_every))
    save(tokenizer, args.out)
    totals = {
        "train": write_arrays(args.out / "train.bin.xz", encode_rows(tokenizer, training_rows(args.corpus))),
        "plain": write_arrays(
            args.out / "plain.bin.xz", encode_rows(tokenizer, plain_rows(args.corpus, args.plain))
        ),
    }
    shutil.copyfile(args.corpus / "heldout.jsonl", args.out / "heldout.jsonl")
    write_packages(args.corpus, args.out)
    (args.out / "totals.json").write_text(json.dumps(totals, indent=1) + "\n")
    print(json.dumps(totals))


if __name__ == "__main__":
    main()
