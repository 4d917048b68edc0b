"""Teacher and student in one model, the losses between them, and how far apart they are.

Below the cut they are the same layers, so these run once, without gradients. Above it the teacher runs the
layers with the base's projections and the student with its own. The losses are those of SwiftKV
(https://arxiv.org/abs/2410.03960, section 3.4, and the recipes published with it): the KL divergence of the
next token's distribution at a temperature, and the squared distance of the states that enter the last layer.
"""

from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import swiftkv.hf  # noqa: F401 - makes AutoModelForCausalLM know the models
from swiftkv import names
from swiftkv.checkpoint import Checkpoint
from swiftkv.data import Batch
from swiftkv.errors import SwiftKVError
from swiftkv.hf import SwiftKVForCausalLM
from swiftkv.hf.modeling import BASE_PROJECTIONS

# Logits are made for so many tokens at a time that one float32 copy of them takes this many values (256 MiB).
LOGITS_AT_A_TIME = 2**26


def load(source: Checkpoint, dtype: torch.dtype, *, teacher: Checkpoint | None = None) -> SwiftKVForCausalLM:
    """Loads a SwiftKV model together with its base's projections above the cut, on the CPU, frozen.

    Args:
        source: the SwiftKV folder.
        dtype: of all weights.
        teacher: the base, whose projections are used; default: those in the folder.

    Raises:
        SwiftKVError: as `check` says.
    """
    check(source, teacher)
    config = transformers.AutoConfig.from_pretrained(source.folder)
    config.keep_base_projections = True
    config.attention_dropout = 0.0
    config.use_cache = False
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.folder, config=config, dtype=dtype, attn_implementation="sdpa"
    )
    if teacher is not None:
        state = model.state_dict()
        for name in sorted(_base_projections(source)):
            state[name].copy_(teacher.tensor(name))
    return model.requires_grad_(False).eval()


def check(source: Checkpoint, teacher: Checkpoint | None) -> None:
    """Looks whether two models can be loaded from these folders.

    Args:
        source: the SwiftKV folder.
        teacher: the base, if it is not to be taken from there.

    Raises:
        SwiftKVError: the folder lacks a tensor of SwiftKV's; or it has not the base's projections and none were given,
            or they are of another model.
    """
    if reason := names.lacking(names.added(source.layout, **_kinds(source)), source.names):
        raise SwiftKVError(f"{source.folder}: {reason}")
    if teacher is not None:
        _check_teacher(source, teacher)
    elif missing := sorted(_base_projections(source) - source.names):
        msg = (
            f"{source.folder} does not hold its base ({missing[0]} is missing); name the base with --teacher"
        )
        raise SwiftKVError(msg)


def _base_projections(source: Checkpoint) -> set[str]:
    """The names of the base's projections that SwiftKV replaces: those of the cut layer's kinds, in each."""
    kinds, found = _kinds(source), set()
    for layer in source.layout.upper:
        for module in BASE_PROJECTIONS:
            stem = f"model.layers.{layer}.self_attn.{module}"
            if module.endswith("_proj"):
                found |= {f"{stem}.weight", f"{stem}.bias"} if kinds["bias"] else {f"{stem}.weight"}
            elif kinds["head_norm"]:
                found.add(f"{stem}.weight")
    return found


def _kinds(source: Checkpoint) -> dict[str, bool]:
    """What the projections have, as `names.added` wants to know it."""
    config = source.config
    bias = config["model_type"] == "qwen2_swiftkv" or config.get("attention_bias", False)
    return {"bias": bias, "head_norm": config["model_type"] == "qwen3_swiftkv"}


def _check_teacher(source: Checkpoint, teacher: Checkpoint) -> None:
    """All that both have must be the same: the teacher is run with the student's, and lends its projections alone."""
    teacher.tensor("model.norm.weight")  # raises where nothing has the same name
    theirs = dict(teacher.samples(source.names))
    for name, ours in source.samples(theirs):
        if ours.shape != theirs[name].shape or not torch.equal(ours.float(), theirs[name].float()):
            msg = f"{teacher.folder} is not the base of {source.folder}: {name} differs"
            raise SwiftKVError(msg)


class Distillation(nn.Module):
    """A model and its base, run side by side.

    All that is trained or measured goes through `forward`, because wrappers (DDP, FSDP) act there.

    Args:
        model: loaded by `load`.
        temperature: of the KL divergence.
        autocast: compute in bfloat16, whatever the weights' dtype.
    """

    def __init__(
        self, model: SwiftKVForCausalLM, *, temperature: float = 2.0, autocast: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self._autocast = autocast
        self._no_split_modules = model._no_split_modules  # what FSDP shards by default

    def tie_weights(self) -> None:
        """Ties the head to the embedding again where the config says so; accelerate calls it."""
        self.model.tie_weights()

    def train_added(self, *, gradient_checkpointing: bool = False) -> None:
        """Makes what SwiftKV added trainable, in float32; everything else stays as it is."""
        for name, parameter in self.model.named_parameters():
            if is_added(name):
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, batch: Batch, *, measure: bool = False) -> tuple[torch.Tensor, ...]:
        """Runs both on a batch.

        Args:
            batch: packed sequences on the model's device.
            measure: how far they are apart, without gradients, in place of the losses.

        Returns:
            The losses, two float32 scalars to be divided by numbers of tokens: the KL divergence times the
            temperature squared, summed over the tokens that count; the mean squared distance of the states that
            enter the last layer, summed over all real tokens. Or what `distance` makes.
        """
        with torch.autocast(
            batch.ids.device.type, torch.bfloat16, enabled=self._autocast, cache_enabled=False
        ):
            decoder, head = self.model.model, self.model.lm_head
            with torch.no_grad():
                embedded = decoder.embed_tokens(batch.ids)
                shape = decoder.shape(embedded, position_ids=batch.positions)
                cut = decoder.lower(embedded, **shape)
                aim, teacher = decoder.base_upper(cut, **shape)
                teacher = decoder.norm(teacher[batch.predicts])
            with torch.set_grad_enabled(torch.is_grad_enabled() and not measure):
                entering, student = decoder.upper(cut, **shape)
                student = decoder.norm(student[batch.predicts])
                if measure:
                    following = batch.ids.roll(-1, 1)[batch.predicts]
                    return (distance(student, teacher, head, following),)
                squares = (entering.float() - aim.float()).square().mean(-1)
                hidden = (squares * batch.real).sum()
                return divergence(student, teacher, head, self.temperature), hidden


def is_added(name: str) -> bool:
    """Whether a parameter of this name is SwiftKV's."""
    return "_swiftkv." in name


def divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    head: nn.Module,
    temperature: float,
    *,
    chunk: int | None = None,
) -> torch.Tensor:
    """The KL divergence of the teacher's distributions from the student's, times the temperature squared, summed.

    Args:
        student: states that the head takes, shape [tokens, hidden].
        teacher: the same of the teacher.
        head: makes logits of them.
        temperature: logits are divided by it.
        chunk: tokens whose logits are in memory at a time; they are made again for the gradients.
    """
    chunk = chunk or _chunk(head)

    def part(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = functional.log_softmax(head(theirs).float() / temperature, -1)
        found = functional.log_softmax(head(ours).float() / temperature, -1)
        return functional.kl_div(found, target, log_target=True, reduction="sum")

    total = student.new_zeros((), dtype=torch.float32)
    for ours, theirs in zip(student.split(chunk), teacher.split(chunk), strict=True):
        total = total + checkpoint(part, ours, theirs, use_reentrant=False)
    return total * temperature**2


def distance(
    student: torch.Tensor, teacher: torch.Tensor, head: nn.Module, following: torch.Tensor
) -> torch.Tensor:
    """How far two models are apart on some tokens: sums, to be added up, float32 of shape [4].

    They are the tokens, the base's and the SwiftKV model's negative log-likelihood of what follows, in nats, and
    the tokens after which both find the same one likeliest.

    Args:
        student: states that the head takes, shape [tokens, hidden].
        teacher: the same of the teacher.
        head: makes logits of them.
        following: the token that follows each, shape [tokens].
    """
    sums = torch.zeros(4, device=student.device)
    chunk = _chunk(head)
    for ours, theirs, ids in zip(
        student.split(chunk), teacher.split(chunk), following.split(chunk), strict=True
    ):
        swiftkv, base = head(ours).float(), head(theirs).float()
        sums += torch.stack([
            torch.tensor(float(len(ids)), device=sums.device),
            functional.cross_entropy(base, ids, reduction="sum"),
            functional.cross_entropy(swiftkv, ids, reduction="sum"),
            (base.argmax(-1) == swiftkv.argmax(-1)).sum().float(),
        ])  # fmt: skip
    return sums


def _chunk(head: Any) -> int:
    return max(1, LOGITS_AT_A_TIME // head.out_features)


def tensors_of(state: dict[str, torch.Tensor], source: Checkpoint) -> dict[str, torch.Tensor]:
    """Trained parameters by the names and in the dtypes of the folder's.

    Args:
        state: parameters by their names in a `Distillation`.
        source: the folder that was trained.
    """
    found = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return {name: tensor.to(source.tensor(name).dtype) for name, tensor in found.items()}
