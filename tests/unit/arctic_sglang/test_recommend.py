"""`arctic-recommend`: what it says fits, is never refused, and rests on figures that are in the results."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from arctic_sglang.compat import source
from arctic_sglang.config import ArcticConfig
from arctic_sglang.embedding import placement, road
from arctic_sglang.embedding.checkpoint import PoolingSpec, UnsupportedCheckpointError
from arctic_sglang.features import Facts, requested
from arctic_sglang.recommend import evidence
from arctic_sglang.recommend.answer import KINDS, Question, Traffic, kind_of
from arctic_sglang.recommend.policy import recommend
from arctic_sglang.recommend.sizes import EMBEDDERS, GIB, Model, Sizes, reserved
from arctic_sglang.shift import limits as shift_limits
from arctic_sglang.shift.topology import Topology
from speculative.settings import SpeculationSettings, check_head_path, model_refusals
from speculative.settings import refusals as speculation_refusals
from swiftkv.limits import refusals as swiftkv_refusals

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "tests" / "data" / "configs"
RESULTS = ROOT / "benchmarks" / "results"
H200 = 139.8
HEAD = "Snowflake/Arctic-LSTM-Speculator-Llama-3.1-8B-Instruct"


def read(name, **changes):
    config = json.loads((CONFIGS / name / "config.json").read_text())
    return Model(name, config | changes)


LLAMA, LARGE = read("Llama-3.1-8B"), read("Llama-3.3-70B")
MOE, BERT = read("Qwen3-30B-A3B"), read("arctic-embed-m")
DEEPSEEK = dataclasses.replace(read("DeepSeek-V3"), file_bytes=641 * GIB)
SWIFTKV = read(
    "Llama-3.1-8B", architectures=["LlamaSwiftKVForCausalLM"], num_key_value_layers=16, model_type="llama_swiftkv"
)  # fmt: skip
AWQ = read("Llama-3.1-8B", quantization_config={"quant_method": "awq"})


def ask(model, gpus=4, gib=H200, traffic="mixed", **more):
    return recommend(Question(model, gpus, gib, KINDS.get(traffic, traffic), **more))


def refused(model, keywords):
    """What a start asks, one function after the other, as `ArcticServerArgs` does."""
    names = {f.name for f in dataclasses.fields(ArcticConfig)}
    config = ArcticConfig(**{name: value for name, value in keywords.items() if name in names})
    given = dict.fromkeys(
        ("speculative_draft_model_path", "speculative_num_draft_tokens", "speculative_num_steps"), None
    )
    given |= {f.name: f.default for f in dataclasses.fields(ArcticConfig)}
    given |= {"tp_size": 1, "dp_size": 1, "is_embedding": False, "speculative_algorithm": None}
    given |= {"enable_memory_saver": False, "quantization": None} | keywords
    algorithm = given["speculative_algorithm"]
    requested(config, Facts("cuda", None, False, given["is_embedding"], model.pooling, algorithm))
    found = []
    quantized = model.config.get("quantization_config")
    if config.ulysses_sequence_parallel_size > 1:
        found += shift_limits.refusals(given | {"prefill_graph": "breakable"})
        method = given["quantization"] or (quantized and quantized["quant_method"])
        found += shift_limits.checkpoint_refusals(method, quantized)
        topology = Topology(given["tp_size"], config.ulysses_sequence_parallel_size)
        shift_limits.heads_of(SimpleNamespace(**model.config), topology)
    if algorithm is not None:
        SpeculationSettings.of(given)
        check_head_path(given["speculative_draft_model_path"])
        mrope = "mrope_section" in (model.config.get("rope_scaling") or {})
        found += speculation_refusals(given)
        found += model_refusals(SimpleNamespace(model_is_mrope=mrope), recurrent=False)
    if config.enable_fast_embedding:
        found += road.refusals(given)
    if config.embedding_replicas > 1:
        found += placement.refusals(given)
    if "SwiftKV" in model.architecture:
        method = quantized and quantized["quant_method"]
        found += swiftkv_refusals(given | {"checkpoint_quantization": method})
    return found


@st.composite
def models(draw):
    """Checkpoints of kinds that are known and not, with sizes that divide and not."""
    kinds = [
        *shift_limits.ARCHITECTURES,
        "DeepseekV3ForCausalLM",
        "GemmaForCausalLM",
        "BertModel",
        "NewModel",
    ]
    name = draw(st.sampled_from(kinds))
    kv = draw(st.sampled_from([1, 2, 3, 4, 8]))
    heads = kv * draw(st.sampled_from([1, 2, 3, 7, 8]))
    layers = draw(st.integers(2, 80))
    config = {
        "architectures": [name], "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "head_dim": draw(st.sampled_from([64, 128])), "hidden_size": heads * 64,
        "intermediate_size": draw(st.sampled_from([1536, 5504, 11008, 14336, 18944])),
        "vocab_size": 1000 * draw(st.integers(1, 200)), "tie_word_embeddings": draw(st.booleans()),
        "max_position_embeddings": draw(st.sampled_from([512, 8192, 131072])),
    }  # fmt: skip
    if "Moe" in name:
        config |= {"num_experts": draw(st.sampled_from([8, 128])), "moe_intermediate_size": 768}
    if "SwiftKV" in name:
        config |= {
            "num_key_value_layers": draw(st.integers(0, layers)),
            "key_value_group_size": draw(st.integers(1, 3)),
        }
    quantized = draw(
        st.sampled_from(
            [None, None, {"quant_method": "fp8"}, {"quant_method": "awq"},
             {"quant_method": "fp8", "weight_block_size": [128, 128]}]
        )
    )  # fmt: skip
    if quantized:
        config["quantization_config"] = quantized
    if draw(st.integers(0, 5)) == 0:
        config["rope_scaling"] = {"mrope_section": [16, 24, 24]}
    pooling = draw(
        st.sampled_from([None, PoolingSpec("cls", True), UnsupportedCheckpointError("max pooling")])
    )
    return Model("m", config, draw(st.sampled_from([None, 10**10, 10**12])), pooling)


traffics = st.one_of(
    st.sampled_from(list(KINDS.values())),
    st.builds(
        Traffic, st.sampled_from(list(KINDS)), st.integers(1, 2000), st.integers(1, 200_000), st.integers(1, 9000),
        st.just(True),
    ),
)  # fmt: skip


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    models(), st.integers(1, 16), st.sampled_from([24, 44, 79.1, H200]), traffics,
    st.sampled_from([None, "fp8"]), st.sampled_from([None, HEAD]),
)  # fmt: skip
def test_nothing_that_is_recommended_is_refused(model, gpus, gib, traffic, quantization, head):
    try:
        found = recommend(Question(model, gpus, gib, traffic, quantization, head))
    except ValueError:
        assume(False)
    assert refused(model, found.keywords) == []
    ranks = found.keywords.get("tp_size", 1) * found.keywords.get("ulysses_sequence_parallel_size", 1)
    copies = found.keywords.get("dp_size", 1) * found.keywords.get("embedding_replicas", 1)
    assert found.gpus == ranks * copies <= gpus
    assert found.weights_gib + reserved(gib, ranks) <= gib
    assert found.kv_tokens is None or found.kv_tokens >= found.question.traffic.each
    assert all(each.reason and "{" not in each.reason for each in (*found.flags, *found.alternatives))


@pytest.mark.parametrize(
    ("model", "options", "keywords"),
    [
        (
            LLAMA,
            {"traffic": "interactive"},
            {"ulysses_sequence_parallel_size": 4, "enable_shift_parallel": True},
        ),
        (LLAMA, {"traffic": "bulk"}, {"dp_size": 4}),
        (LLAMA, {"gpus": 6}, {"dp_size": 6}),
        (
            LLAMA,
            {"gpus": 6, "traffic": "interactive"},
            {"ulysses_sequence_parallel_size": 4, "enable_shift_parallel": True},
        ),
        (LLAMA, {"gpus": 1}, {}),
        (
            LARGE,
            {"traffic": "bulk"},
            {"tp_size": 2, "ulysses_sequence_parallel_size": 2, "enable_shift_parallel": True},
        ),
        (
            LARGE,
            {"gpus": 2, "quantization": "fp8", "traffic": "interactive"},
            {"quantization": "fp8", "ulysses_sequence_parallel_size": 2, "enable_shift_parallel": True},
        ),
        (
            MOE,
            {"traffic": "agentic", "gpus": 8},
            {
                "ulysses_sequence_parallel_size": 8,
                "enable_shift_parallel": True,
                "speculative_algorithm": "SUFFIX",
            },
        ),
        (
            LLAMA,
            {"gpus": 1, "traffic": "mixed", "head": HEAD},
            {
                "speculative_algorithm": "ARCTIC",
                "speculative_draft_model_path": HEAD,
                "enable_suffix_decoding": True,
                "speculative_disable_by_batch_size": 64,
            },
        ),
        (DEEPSEEK, {"gpus": 8, "traffic": "agentic"}, {"tp_size": 8}),
        (
            BERT,
            {"gpus": 2, "traffic": "embeddings"},
            {"is_embedding": True, "enable_fast_embedding": True, "embedding_replicas": 2},
        ),
        # The vectorised road uses no KV cache: one instance on each GPU that holds the weights.
        (
            LLAMA,
            {"gib": 24, "traffic": Traffic("embeddings", 400, 512, 0, True)},
            {"is_embedding": True, "enable_fast_embedding": True, "embedding_replicas": 4},
        ),
        (
            LLAMA,
            {"gib": 24, "traffic": Traffic("embeddings", 1, 60000, 0, True)},
            {"is_embedding": True, "enable_fast_embedding": True, "embedding_replicas": 4},
        ),
        (
            LARGE,
            {"gib": 79.1, "traffic": "embeddings"},
            {"is_embedding": True, "enable_fast_embedding": True, "tp_size": 4},
        ),
        (SWIFTKV, {"gpus": 2}, {"ulysses_sequence_parallel_size": 2, "enable_shift_parallel": True}),
    ],
)
def test_choices(model, options, keywords):
    assert ask(model, **options).keywords == keywords


# SwiftKV models are refused for embeddings by limits of their own.
STOCK = [name for name in dict.fromkeys((*EMBEDDERS, *shift_limits.ARCHITECTURES)) if "SwiftKV" not in name]


@pytest.mark.parametrize("name", STOCK)
def test_models_that_embed_are_those_whose_forward_in_sglang_does(name):
    root = source.installed_root()
    found = []
    for file in sorted((root / "srt" / "models").glob("*.py")):
        if re.search(rf"^class {name}\(", file.read_text(), re.MULTILINE):
            label = f"sglang.srt.models.{file.stem}.{name}"
            found.append(source.find_member(root, source.find(root, label), "forward", label).parameters)
    assert [("get_embedding" in parameters) for parameters in found] == [name in EMBEDDERS]


def test_a_refusal_is_told():
    found = ask(DEEPSEEK, gpus=8, traffic="agentic")
    told = {each.what: each.reason for each in found.alternatives}
    assert "DeepseekV3ForCausalLM is not supported" in told["Shift Parallelism"]
    assert "not tried" in told["speculative decoding"]
    assert "Shift Parallelism is refused" in found.flags[0].why


def test_a_cache_that_is_too_small_is_told():
    found = ask(LARGE, gib=79.1, traffic="agentic")
    assert found.keywords["tp_size"] == 4
    assert found.kv_tokens < found.question.traffic.tokens
    assert "leaves most room" in found.flags[0].why
    assert any("how long requests wait" in line for line in found.unknown)
    assert any(each.what == "Shift Parallelism" and "do not fit" in each.why for each in found.alternatives)


def test_assumed_sizes_are_cut_to_the_window():
    short = ask(read("Llama-3.1-8B", max_position_embeddings=2048), traffic="agentic").question.traffic
    assert (short.tokens_in, short.tokens_out) == (1048, 1000)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (LARGE, {"gpus": 1}, r"does not fit on 1 x 139\.8 GiB.*131\.4 GiB of weights.*would be needed.*fp8"),
        (BERT, {}, "BertModel, which generates no text; ask for --traffic embeddings"),
        (BERT, {"traffic": "embeddings", "head": HEAD}, "embeddings are not decoded"),
        (SWIFTKV, {"traffic": "embeddings"}, "cannot be served for embeddings.*\n.*--is-embedding True: pooling"),
        (MOE, {"traffic": "embeddings"}, "--is-embedding: SGLang's Qwen3MoeForCausalLM gives no embeddings"),
        (read("DeepSeek-V3"), {"gpus": 8}, "give --weights GIB"),
        (DEEPSEEK, {"gpus": 8, "quantization": None, "gib": 79.1}, r"at least|would be needed"),
        (AWQ, {"quantization": "fp8"}, "comes quantised as awq"),
        (LLAMA, {"head": "nowhere/at/all"}, "--speculative-draft-model-path nowhere/at/all: the folder is not there"),
        (LLAMA, {"gpus": 0}, "--gpus 0"),
        (
            dataclasses.replace(BERT, pooling=UnsupportedCheckpointError("max pooling")),
            {"traffic": "embeddings"},
            "max pooling; start with --embedding-pooling stock",
        ),
    ],
)  # fmt: skip
def test_errors_say_what_is_wanted(model, options, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the words are compared below, over lines
        ask(model, **options)
    assert re.search(words, str(error.value), re.DOTALL)


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ((1, 8000, 200), "interactive"),
        ((64, 10, 900), "interactive"),
        ((65, 10, 900), "mixed"),
        ((256, 2000, 250), "bulk"),
        ((256, 1999, 250), "mixed"),
        ((255, 2000, 250), "mixed"),
    ],
)
def test_kind_of_measured_traffic(numbers, kind):
    assert kind_of(*numbers) == kind


FIGURES = {name: value for name, value in vars(evidence).items() if isinstance(value, evidence.Figure)}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_in_the_results(name):
    figure = FIGURES[name]
    found = json.loads((RESULTS / figure.file).read_text())
    for key in figure.path:
        found = found[key]
    digits = len(figure.value.partition(".")[2])
    assert figure.value == f"{found:,.{digits}f}"


def test_a_heads_drafts_were_timed_for_as_many_requests_as_is_said():
    drafts = json.loads((RESULTS / "speculator_draft.json").read_text())["drafts"]
    keywords = ask(LLAMA, gpus=1, head=HEAD).keywords
    assert keywords["speculative_disable_by_batch_size"] == max(draft["batch"] for draft in drafts)


def arms(name):
    result = json.loads((RESULTS / f"{name}.json").read_text())
    for title, arm in result["arms"].items():
        about = arm.get("about", arm)
        yield title, arm.get("options", {}), about["memory_gib_of_first_rank"], about["settings"]


@pytest.mark.parametrize(
    ("result", "models"),
    [
        ("shift_speed_llama-3.1-8b", {"tp": LLAMA, "dp": LLAMA, "shift": LLAMA}),
        ("shift_speed_llama-3.1-8b_2", {"dp": LLAMA, "shift": LLAMA}),
        ("swiftkv_llama-3.1-8b", {"stock": LLAMA, "swiftkv": SWIFTKV}),
        ("swiftkv_llama-3.1-8b_fp8", {"stock": LLAMA, "swiftkv": SWIFTKV}),
        ("swiftkv_llama-3.1-70b_tp4", {"stock": LARGE}),
    ],
)
def test_estimates_are_those_of_engines_that_ran(result, models):
    for title, options, memory, server in arms(result):
        if title not in models:
            continue
        tp, sp = options.get("tp_size", 1), options.get("ulysses_sequence_parallel_size", 1)
        sizes = Sizes.of(models[title], options.get("quantization") == "fp8")
        assert sizes.weights(tp, sp) / GIB == pytest.approx(memory["weight"], rel=0.045)
        cache = memory["token_capacity"] * sizes.kv_bytes(tp * sp) / GIB
        assert cache == pytest.approx(memory["kvcache"], rel=0.001)
        if "mem_fraction_static" not in options:
            free = (1 - server["mem_fraction_static"]) * H200
            assert free <= reserved(H200, tp * sp) <= free + 1


def test_parts_that_are_held_twice_in_fp8_are_those_of_the_page():
    sizes = Sizes.of(LARGE, True)
    assert sizes.copied / 4 / GIB == pytest.approx(5.6, abs=0.05)
    assert (sizes.shared + sizes.keys_values) / GIB == pytest.approx(63.8, abs=0.1)
