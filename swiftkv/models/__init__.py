"""SwiftKV models for SGLang's registry of models: one module an architecture, and what they share.

body          the decoder: lower half, keys and values of the upper half, upper half
keys_values   the upper half's one projection of keys and values, and its way into the cache
tail          the batch of the rows that go up
tail_graphs   their CUDA graphs
causal        the outer model: what is read, what is loaded, what is refused
"""

from arctic_sglang.compat import vendor
from swiftkv.layout import ARCHITECTURES


def register() -> None:
    """Adds the models to SGLang's registry, in the process that loads a model. Idempotent.

    Raises:
        ImportError: a model file does not import with the installed SGLang.
    """
    known = vendor.ModelRegistry.get_supported_archs()
    if not set(ARCHITECTURES.values()) <= set(known):
        vendor.ModelRegistry.register(__name__, strict=True)
