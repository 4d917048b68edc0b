"""Small sentence-transformers checkpoints with random weights, of the architectures that embed."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

KIND = "sentence_transformers.models."
WIDTH = 64
# Large enough that texts do not all end up in one direction, which would make any comparison pass.
SPREAD = 0.2


@dataclass(frozen=True)
class Checkpoint:
    """What to write.

    Attributes:
        model: "bert", "xlm-roberta", "qwen3" or "mistral".
        pooling: the flag of `1_Pooling/config.json`.
        window: `max_seq_length`, and for an encoder all the positions that there are.
        dense: (width, activation) of every Dense layer.
        prompts, default_prompt: of `config_sentence_transformers.json`.
        dimensions: `matryoshka_dimensions` of `config.json`.
    """

    model: str
    pooling: str
    window: int
    dense: tuple[tuple[int, str], ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    dimensions: tuple[int, ...] = ()


def write(checkpoint: Checkpoint, folder: Path, corpus: list[str]) -> str:
    """Write it and return its path. The tokenizer is trained on `corpus`."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(checkpoint, corpus)
    tokenizer.save_pretrained(folder)
    model = _model(checkpoint, len(tokenizer))
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if checkpoint.model == "qwen3":
        config["architectures"] = [
            "Qwen3ForCausalLM"
        ]  # as Qwen3-Embedding, whose weights have no head either
    if checkpoint.dimensions:
        config["matryoshka_dimensions"] = list(checkpoint.dimensions)
    (folder / "config.json").write_text(json.dumps(config))
    _write_modules(checkpoint, folder)
    return str(folder)


def _write_modules(checkpoint: Checkpoint, folder: Path) -> None:
    kinds = ["Pooling", *("Dense" for _ in checkpoint.dense), "Normalize"]
    modules = [{"idx": 0, "name": "0", "path": "", "type": KIND + "Transformer"}]
    for index, kind in enumerate(kinds, 1):
        modules.append({"idx": index, "name": str(index), "path": f"{index}_{kind}", "type": KIND + kind})
        (folder / f"{index}_{kind}").mkdir()
    pooling = {"word_embedding_dimension": WIDTH, checkpoint.pooling: True, "include_prompt": True}
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": checkpoint.window, "do_lower_case": False},
        "1_Pooling/config.json": pooling,
        "config_sentence_transformers.json": {
            "prompts": checkpoint.prompts,
            "default_prompt_name": checkpoint.default_prompt,
            "similarity_fn_name": "cosine",
        },
    }
    before = WIDTH
    for index, (out, activation) in enumerate(checkpoint.dense, 2):
        files[f"{index}_Dense/config.json"] = {
            "in_features": before,
            "out_features": out,
            "bias": index % 2 == 0,
            "activation_function": f"torch.nn.modules.activation.{activation}",
        }
        tensors = {"linear.weight": torch.randn(out, before) / before**0.5}
        if index % 2 == 0:
            tensors["linear.bias"] = torch.randn(out) / 4
        save_file(tensors, folder / f"{index}_Dense" / "model.safetensors")
        before = out
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def _tokenizer(checkpoint: Checkpoint, corpus: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special, template, roles = {
        "bert": (
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
            "[CLS] $A [SEP]",
            {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        ),
        "xlm-roberta": (
            ["<s>", "<pad>", "</s>", "<unk>"],
            "<s> $A </s>",
            {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        ),
    }.get(
        checkpoint.model,
        (  # decoders
            ["<|endoftext|>"],
            "$A <|endoftext|>",
            dict.fromkeys(("pad_token", "eos_token"), "<|endoftext|>"),
        ),
    )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(corpus, trainer)
    ends = [(token, backend.token_to_id(token)) for token in special if token in template]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def _model(checkpoint: Checkpoint, vocabulary: int):
    import transformers

    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": SPREAD,
    }
    if checkpoint.model == "bert":
        config = transformers.BertConfig(**sizes, max_position_embeddings=checkpoint.window, pad_token_id=0)
        return transformers.BertModel(config).eval()
    if checkpoint.model == "xlm-roberta":
        # Positions begin behind the padding token's id, so a table of 514 rows is a window of 512.
        config = transformers.XLMRobertaConfig(
            **sizes, max_position_embeddings=checkpoint.window + 2, pad_token_id=1, type_vocab_size=1
        )
        return transformers.XLMRobertaModel(config).eval()
    config = transformers.AutoConfig.for_model(
        checkpoint.model, **sizes, num_key_value_heads=2, head_dim=32, max_position_embeddings=1024,
        tie_word_embeddings=True, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    return transformers.AutoModel.from_config(config).eval()
