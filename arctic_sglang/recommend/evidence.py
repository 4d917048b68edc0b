"""The measured figures that recommendations rest on, with the file in `benchmarks/results/` that each is from. Pure.

A unit test compares every one with its file.
"""

from dataclasses import dataclass

_SHIFT_4 = "shift_speed_llama-3.1-8b.json"
_SHIFT_2 = "shift_speed_llama-3.1-8b_2.json"
_BESIDE_2 = "all_on_llama-3.1-8b_2_without_drafts.json"
_SUFFIX = "speculation_speed.json"
_HEADS = "speculation_acceptance.json"
_EMBED = "embed_speed.json"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a result.

    Attributes:
        value: as it is quoted: rounded.
        file: in `benchmarks/results/`.
        path: keys to it in the file, outermost first.
    """

    value: str
    file: str
    path: tuple[str, ...]

    def __str__(self) -> str:
        return self.value


# Shift Parallelism, Llama-3.1-8B's shape in bf16 on H200s: its speed over the other one's.
SHIFT_TTFT_TP = Figure("1.328", _SHIFT_4, ("table", "ttft 8192", "faster_than", "tp"))
SHIFT_TTFT_DP = Figure("3.338", _SHIFT_4, ("table", "ttft 8192", "faster_than", "dp"))
SHIFT_PREFILL_TP = Figure("1.298", _SHIFT_4, ("table", "prefill", "faster_than", "tp"))
SHIFT_PREFILL_DP = Figure("0.929", _SHIFT_4, ("table", "prefill", "faster_than", "dp"))
SHIFT_PREFILL_DP2 = Figure("0.967", _SHIFT_2, ("table", "prefill", "faster_than", "dp"))
SHIFT_DECODE_1_TP = Figure("0.994", _SHIFT_4, ("table", "decode 1", "faster_than", "tp"))
SHIFT_DECODE_64_TP = Figure("1.066", _SHIFT_4, ("table", "decode 64", "faster_than", "tp"))
SHIFT_DECODE_64_DP = Figure("1.684", _SHIFT_4, ("table", "decode 64", "faster_than", "dp"))
SHIFT_DECODE_256_DP = Figure("1.187", _SHIFT_4, ("table", "decode 256", "faster_than", "dp"))
SHIFT_MIX_DP = Figure("0.991", _SHIFT_4, ("table", "mix", "faster_than", "dp"))

# Shift Parallelism and tensor parallelism over the same two GPUs: ms, tokens/s, ms a token.
SHIFT_TTFT_2 = Figure("111.5", _BESIDE_2, ("table", "ttft 8192", "medians", "shift"))
TP_TTFT_2 = Figure("125.5", _BESIDE_2, ("table", "ttft 8192", "medians", "tp"))
SHIFT_PREFILL_2 = Figure("74,242", _BESIDE_2, ("table", "prefill", "medians", "shift"))
TP_PREFILL_2 = Figure("64,999", _BESIDE_2, ("table", "prefill", "medians", "tp"))
SHIFT_DECODE_64_2 = Figure("4.22", _BESIDE_2, ("table", "decode 64", "medians", "shift"))
TP_DECODE_64_2 = Figure("4.21", _BESIDE_2, ("table", "decode 64", "medians", "tp"))
SHIFT_DECODE_64_DP2 = Figure("1.343", _SHIFT_2, ("table", "decode 64", "faster_than", "dp"))

# Tensor and data parallelism over the same four GPUs: ms a token, and seconds for the mix.
TP_DECODE_64 = Figure("3.23", _SHIFT_4, ("table", "decode 64", "medians", "tp"))
DP_DECODE_64 = Figure("5.10", _SHIFT_4, ("table", "decode 64", "medians", "dp"))
TP_MIX = Figure("6.57", _SHIFT_4, ("table", "mix", "medians", "tp"))
DP_MIX = Figure("5.46", _SHIFT_4, ("table", "mix", "medians", "dp"))

# Suffix decoding: its time per token over that of plain decode.
SUFFIX_REPEATS_1 = Figure("0.065", _SUFFIX, ("table", "repeated 1", "over_none", "suffix"))
SUFFIX_REPEATS_16 = Figure("0.153", _SUFFIX, ("table", "repeated 16", "over_none", "suffix"))
SUFFIX_FRESH_1 = Figure("1.001", _SUFFIX, ("table", "fresh 1", "over_none", "suffix"))
SUFFIX_FRESH_256 = Figure("1.010", _SUFFIX, ("table", "fresh 256", "over_none", "suffix"))

# Tokens a second of the tiny model with index and head together, with the index alone, and without speculation.
BOTH_32 = Figure("7,406", _HEADS, ("arms", "hybrid", "rows", "32", "tokens_per_second", "median"))
SUFFIX_32 = Figure("4,937", _HEADS, ("arms", "suffix", "rows", "32", "tokens_per_second", "median"))
NONE_32 = Figure("6,225", _HEADS, ("arms", "none", "rows", "32", "tokens_per_second", "median"))

# Embeddings, arctic-embed-m-v1.5's shape on one H200: over stock SGLang behind /v1/embeddings; tokens a second of
# batch_sdk.embed.
EMBED_HTTP = Figure("24.94", _EMBED, ("table", "http 64 base64", "ratio"))
EMBED_HTTP_SINGLE = Figure("1.78", _EMBED, ("table", "http 1 base64", "ratio"))
EMBED_ONE = Figure("2,451,835", _EMBED, ("table", "sdk 50 replicas-1", "ours"))
EMBED_TWO = Figure("2,306,248", _EMBED, ("table", "sdk 50 replicas-2", "ours"))

# SwiftKV over the plain model, one H200.
SWIFTKV_PREFILL = Figure("1.90", "swiftkv_llama-3.1-8b.json", ("table", "prefill", "ratio"))
SWIFTKV_DECODE_64 = Figure("1.007", "swiftkv_llama-3.1-8b.json", ("table", "decode 64", "ratio"))
# Stock SGLang's tokens a second of prefill, in fp8 and in bf16.
PREFILL_FP8 = Figure("55,352", "swiftkv_llama-3.1-8b_fp8.json", ("table", "prefill", "stock"))
PREFILL_BF16 = Figure("39,157", "swiftkv_llama-3.1-8b.json", ("table", "prefill", "stock"))
