"""The platform that SGLang sees on a machine without an accelerator.

SGLang picks layer implementations by platform. Its own CPU platform wants kernels that the wheels on PyPI
lack; an out-of-tree platform whose dispatch key is "native" makes every layer use its plain torch form.
"""

from typing import Any

from arctic_sglang.compat import vendor


def token_allocator(size: int, *, page_size: int, **kwargs: Any) -> Any:
    """SGLang's KV slot allocator. `size`: slots of one token each.

    Raises:
        ValueError: a page size other than 1, whose allocator exists as a GPU kernel only.
    """
    if page_size != 1:
        msg = f"--page-size is {page_size}; on a machine without a GPU it must be 1"
        raise ValueError(msg)
    return vendor.TokenToKVPoolAllocator(size, **kwargs)


class CpuPlatform(vendor.CpuDeviceMixin, vendor.SRTPlatform):
    """A machine whose only device is its CPU."""

    _enum = vendor.PlatformEnum.OOT

    def get_device(self, device_id: int | None = None) -> str:
        """Every rank shares the one CPU."""
        return "cpu"

    def get_default_attention_backend(self) -> str:
        """Attention through torch's scaled_dot_product_attention."""
        return "torch_native"

    def get_mha_kv_pool_cls(self) -> type:
        """SGLang's own KV pool; it holds plain tensors."""
        return vendor.MHATokenToKVPool

    def get_mla_kv_pool_cls(self) -> type:
        """SGLang's own latent KV pool."""
        return vendor.MLATokenToKVPool

    def get_paged_allocator_cls(self) -> Any:
        """The allocator of single slots."""
        return token_allocator

    def get_dispatch_key_name(self) -> str:
        """Layers run their `forward_native`."""
        return "native"

    def get_compile_backend(self, mode: str | None = None) -> str:
        """SGLang's compiled helpers run as plain torch: they are small, and inductor would take every rank 12 CPU
        seconds at its first step (two ranks' embedding, repetition penalties), and the machine a C++ compiler.

        Args:
            mode: a hint of SGLang's for other platforms.
        """
        return "eager"

    def get_torch_profiler_activity_str(self) -> str:
        """The profiler's name for this device."""
        return "CPU"

    def get_torch_profiler_activity(self) -> Any:
        """What torch's profiler records."""
        return vendor.torch_profiler_cpu()
