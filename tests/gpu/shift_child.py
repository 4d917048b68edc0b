"""One engine of test_shift.py: answers the same prompts several times and writes what it said.

Usage: shift_child.py OPTIONS PROMPTS FILE; the first two are JSON, the file gets JSON.
"""

import json
import sys


def main() -> None:
    """Runs it."""
    import sglang

    options, prompts = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    again = options.pop("again", None)
    engine = sglang.Engine(
        **{
            "skip_tokenizer_init": True, "log_level": "info", "max_total_tokens": 20_000, "mem_fraction_static": 0.5,
            "chunked_prefill_size": 128, "cuda_graph_max_bs_decode": 48, "enable_mixed_chunk": True, **options,
        }
    )  # fmt: skip
    sampling = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}

    if options.get("is_embedding"):
        write({"vectors": [prompts, vectors(engine, prompts)]})
        engine.shutdown()
        return

    def ask(asked: list) -> list:
        answers = engine.generate(
            input_ids=asked, sampling_params=sampling, return_logprob=True, logprob_start_len=0
        )
        return [asked, answers]

    said = [ask(prompts), ask([prompts[0]])]
    # Behind what was cached: the beginning of a long one, and all that was said to the others.
    longer = [prompt + answer["output_ids"][:3] for prompt, answer in zip(*said[0], strict=True)]
    said.append([longer, engine.generate(input_ids=longer, sampling_params=sampling, return_logprob=True)])
    told = engine.get_server_info()["internal_states"][0].get("shift")
    found = {"said": said, "told": told}
    if again is not None:
        loaded = engine.update_weights_from_disk(again)
        assert loaded[0], loaded
        found["again"] = ask(prompts)
    write(found)
    engine.shutdown()


def vectors(engine, prompts: list) -> list:
    """Embeddings of token ids; one request alone first, a step of few tokens."""
    from sglang.srt.managers.io_struct import EmbeddingReqInput

    found = []
    for asked in (prompts[:1], prompts[1:]):
        request = engine.tokenizer_manager.generate_request(EmbeddingReqInput(input_ids=asked), None)
        answers = engine.loop.run_until_complete(anext(request))
        found += [answer["embedding"] for answer in answers]
    return found


def write(found: dict) -> None:
    """Where test_shift.py looks for it."""
    with open(sys.argv[3], "w", encoding="utf-8") as out:
        json.dump(found, out)


if __name__ == "__main__":
    main()
