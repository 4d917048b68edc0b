"""The model: a Llama in plain torch whose parameter names are those of Hugging Face's LlamaForCausalLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Z_LOSS = 0.01


@dataclass(frozen=True)
class Config:
    """The shape of the model."""

    vocab_size: int = 8192
    hidden_size: int = 256
    intermediate_size: int = 768
    layers: int = 8
    heads: int = 4
    head_dim: int = 64
    max_positions: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0

    def to_hf(self, pad: int, eos: int) -> dict[str, Any]:
        """Return the contents of `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": eos,
            "pad_token_id": pad,
        }


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 as Hugging Face's is."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        wide = x.float()
        return (self.weight * wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions in the rotate-half convention."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention within each packed example."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.heads * config.head_dim
        self.heads, self.head_dim = config.heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, size, bias=False)
        self.o_proj = nn.Linear(size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask | Tensor) -> Tensor:
        """Attend, through flex attention when the mask is a block mask and plainly otherwise."""
        rows, length, _ = x.shape
        shape = (rows, length, self.heads, self.head_dim)
        q = rotate(self.q_proj(x).view(shape).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(shape).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        if isinstance(mask, BlockMask):
            out = flex_attention(q, k, v, block_mask=mask)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        assert isinstance(out, Tensor)
        return self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))


class MLP(nn.Module):
    """The gated feed-forward block."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply SwiGLU."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask | Tensor) -> Tensor:
        """Add attention and feed-forward to the residual stream."""
        attended = self.self_attn(self.input_layernorm(x), cos, sin, mask)
        x = x + F.dropout(attended, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training)


class Decoder(nn.Module):
    """Embedding, layers and final norm: `model.` in Hugging Face's names."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class TinyLlama(nn.Module):
    """The language model, with the embedding tied to the output."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.register_buffer("frequency", config.rope_theta**-exponent, persistent=False)
        residual = 0.02 / (2 * config.layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(
                    parameter, std=residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
                )

    def forward(self, tokens: Tensor, positions: Tensor, examples: Tensor, flex: bool = False) -> Tensor:
        """Return logits; `examples` numbers the packed example that each token belongs to."""
        angles = positions.float().unsqueeze(-1) * self.frequency
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        x = self.model.embed_tokens(tokens)
        cos, sin = angles.cos(), angles.sin()
        mask = flex_mask(examples) if flex else dense_mask(examples)
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


def dense_mask(examples: Tensor) -> Tensor:
    """Return the boolean mask that lets a token see its own example's tokens up to itself."""
    length = examples.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=examples.device).tril()
    return ((examples.unsqueeze(1) == examples.unsqueeze(2)) & causal).unsqueeze(1)


def flex_mask(examples: Tensor) -> BlockMask:
    """Return the same mask as a block mask."""

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (examples[row, query] == examples[row, key])

    rows, length = examples.shape
    return create_block_mask(visible, rows, None, length, length, device=examples.device)


def weighted_loss(
    model: nn.Module, batch: dict[str, Tensor], code_weight: Tensor, flex: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted loss, the summed answer loss and the number of answer tokens.

    The weighted loss has a z-loss: it draws log Z, the logits' log-sum-exp, to 0. Logits near 0 lose far less
    to bfloat16 than those near 12 that training finds without it, and a GPU then agrees with float32 on
    near ties.
    """
    logits = model(batch["tokens"], batch["positions"], batch["examples"], flex)[:, :-1].float()
    target, kind = batch["tokens"][:, 1:], batch["kinds"][:, 1:]
    same = batch["examples"][:, 1:] == batch["examples"][:, :-1]
    log_z = logits.logsumexp(-1)
    nll = log_z - logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    answer = ((kind == 2) & same).float()
    weight = answer + ((kind == 1) & same).float() * code_weight
    loss = ((nll + Z_LOSS * log_z.square()) * weight).sum() / weight.sum().clamp(min=1.0)
    return loss, (nll * answer).sum(), answer.sum()
