"""Which tensor of Snowflake's checkpoints is which part of a module's parameters. Pure: no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from speculative.speculators.config import SpeculatorConfig

GATES = ("forget", "input", "output", "cell")  # in the order in which the module keeps them side by side


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a checkpoint.

    Attributes:
        name: in the checkpoint, without the prefix "speculator.".
        shape: in the checkpoint.
        parameter: name of the module's parameter that it is, or is part of.
        axis: where the parameter is cut into `parts` equal parts.
        part: which of them this is.
        parts: how many there are.
        required: False for a further name of a shared tensor, which a checkpoint may leave out.
        written: whether `save` writes it.
    """

    name: str
    shape: tuple[int, ...]
    parameter: str
    axis: int = 0
    part: int = 0
    parts: int = 1
    required: bool = True
    written: bool = True


def entries(config: SpeculatorConfig, parameters: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """Every tensor that a checkpoint of this config may hold; a shared one's required name comes first.

    Args:
        config: of the checkpoint.
        parameters: shapes of the whole module's parameters, by name.
    """
    return [
        entry for name, shape in parameters.items() for entry in _of_parameter(config, name, tuple(shape))
    ]


def _of_parameter(config: SpeculatorConfig, name: str, shape: tuple[int, ...]) -> Iterator[Entry]:
    group, index, rest = name.split(".", 2)
    if config.kind == "lstm" and group == "proj":
        part_shape = (shape[0] // len(GATES), shape[1])
        for part, gate in enumerate(GATES):
            yield Entry(f"{gate}_proj.{index}.{rest}", part_shape, name, 0, part, len(GATES))
    elif config.kind == "lstm" and group == "emb":
        part_shape = (shape[0], config.emb_dim[0])
        for part, gate in enumerate(GATES):
            if config.tie_lstm_embs:
                first = part == 0
                yield Entry(f"{gate}_emb.{index}.{rest}", part_shape, name, required=first, written=first)
            else:
                yield Entry(f"{gate}_emb.{index}.{rest}", part_shape, name, 1, part, len(GATES))
    else:
        yield Entry(name, shape, name)
        for alias in _aliases(config, group, int(index)):
            # Snowflake's modules for "sum_lstm" and "sum_rnn" have a head for each step and the rest once.
            written = group == "head" or config.kind == "mlp"
            yield Entry(f"{group}.{alias}.{rest}", shape, name, required=False, written=written)


def _aliases(config: SpeculatorConfig, group: str, index: int) -> range:
    """The later steps that share a parameter of step `index`."""
    shares = config.tie_weights and group in ("head", "emb", "ln", "proj")
    last = (
        1 if group == "proj" else 0
    )  # the first projection is from the target's width, the second is shared
    return range(index + 1, config.n_predict) if shares and index == last else range(0)
