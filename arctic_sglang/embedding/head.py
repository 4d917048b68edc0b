"""From packed token vectors to the vectors of texts: pooling, Dense layers, cut, normalisation. Torch alone."""

from pathlib import Path

import torch

from arctic_sglang.embedding.checkpoint import DenseSpec, PoolingSpec
from arctic_sglang.embedding.pool import pool, pool_slow


class EmbeddingHead:
    """What a checkpoint does after its transformer.

    It works in float32 whatever the model's dtype is: it sees one vector a text, so its cost does not show.

    Args:
        spec: what the checkpoint says; the files of its Dense layers are read here.
        device: where the token vectors will be.

    Raises:
        ValueError: a Dense layer's weights do not have the shape that its config says.
    """

    def __init__(self, spec: PoolingSpec, device: torch.device | str) -> None:
        self.spec = spec
        self._layers = [load_dense(dense).to(device) for dense in spec.dense]

    @torch.no_grad()
    def __call__(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """One vector per text, not cut and not normalised.

        Args:
            hidden: `[tokens, width]`, any float dtype, texts packed one after another.
            lengths: `[texts]`, integer, on the same device: tokens of each text, none of them 0.

        Returns:
            `[texts, out]`, float32.
        """
        vectors = pool(self.spec.mode, hidden, lengths)
        for layer in self._layers:
            vectors = layer(vectors)
        return vectors

    def finish(self, vectors: torch.Tensor, dimensions: int | None = None) -> torch.Tensor:
        """Cut vectors to their first components, then scale them to length 1 if the checkpoint normalises.

        Args:
            vectors: `[texts, out]` or `[out]`, float32.
            dimensions: components to keep (Matryoshka); None: what the checkpoint says, which may be all.

        Returns:
            The same with `dimensions` components, at most those that there are.
        """
        vectors = vectors[..., : dimensions or self.spec.truncate_dim]
        return torch.nn.functional.normalize(vectors, p=2, dim=-1) if self.spec.normalize else vectors


def load_dense(dense: DenseSpec) -> torch.nn.Sequential:
    """The layer of a Dense module: linear and activation, float32, on the CPU.

    Raises:
        ValueError: the file does not have the weights that the config says.
    """
    found = _read_weights(Path(dense.weights))
    wanted = {"linear.weight": (dense.out_features, dense.in_features)}
    if dense.bias:
        wanted["linear.bias"] = (dense.out_features,)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != wanted:
        msg = f"{dense.weights} has {shapes}; its config.json asks for {wanted}"
        raise ValueError(msg)
    linear = torch.nn.Linear(dense.in_features, dense.out_features, bias=dense.bias, dtype=torch.float32)
    linear.load_state_dict({name.removeprefix("linear."): tensor.float() for name, tensor in found.items()})
    return torch.nn.Sequential(linear, getattr(torch.nn, dense.activation)()).requires_grad_(False).eval()


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def head_slow(
    spec: PoolingSpec, hidden: torch.Tensor, lengths: torch.Tensor, dimensions: int | None = None
) -> torch.Tensor:
    """The specification of `EmbeddingHead`, one text and one component at a time, in float64."""
    rows = []
    for vector in pool_slow(spec.mode, hidden.double(), lengths):
        vector = vector.double()
        for dense in spec.dense:
            found = {name: tensor.double() for name, tensor in _read_weights(Path(dense.weights)).items()}
            sums = torch.stack([(row * vector).sum() for row in found["linear.weight"]])
            vector = getattr(torch.nn, dense.activation)()(sums + found.get("linear.bias", 0.0))
        vector = vector[: dimensions or spec.truncate_dim or len(vector)]
        rows.append(vector / vector.square().sum().sqrt() if spec.normalize else vector)
    return torch.stack(rows).float()
