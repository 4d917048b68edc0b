"""Recompute the held-out loss of a saved model: `python examples/tiny_lm/evaluate.py MODEL_DIR [heldout.jsonl]`.

Runs on the CPU in float32 with transformers.  The number is the mean negative log-likelihood, in nats per token, of
the true summary and its end token, given the function in the chat template.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HELDOUT = Path(__file__).resolve().parent / "heldout.jsonl"


def heldout_loss(model_dir: str | Path, path: str | Path = HELDOUT) -> float:
    """Return the held-out loss of the model saved in `model_dir` on the examples of `path`."""
    tokenizer = AutoTokenizer.from_pretrained(str(model_dir))
    model = AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32).eval()
    total, count = 0.0, 0
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        messages = [{"role": "user", "content": row["code"]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(row["doc"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        count += len(answer)
    return total / count


def main() -> None:
    """Parse the command line and print the loss."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("heldout", type=Path, nargs="?", default=HELDOUT)
    args = parser.parse_args()
    print(f"{heldout_loss(args.model, args.heldout):.4f} nats per token")


if __name__ == "__main__":
    main()
