"""How many ranks the tests may have here, and what those need that share a GPU."""

import os

import torch

_GPUS = torch.cuda.device_count()
SHARED = _GPUS == 1  # then ranks share it, by the plugin in shared_gpu/
RANKS = int(os.environ.get("ARCTIC_TEST_RANKS", "2")) if SHARED else _GPUS
AT_ONCE = 5 if SHARED else 100  # engines of several ranks; those that share a GPU wait for the turns of all
ENVIRONMENT = {
    "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_MNNVL_ENABLE": "0",
    "NCCL_IB_DISABLE": "1",
    "NCCL_SOCKET_IFNAME": "lo",
}  # of processes whose ranks share a GPU
