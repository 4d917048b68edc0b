"""One engine on a GPU: answers to the prompts of a file, as JSON. Run by test_speculation.py."""

import json
import sys


def main() -> None:
    """Usage: speculation_child.py OPTIONS_JSON PROMPTS OUT."""
    import sglang

    options, prompts, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    with open(prompts, encoding="utf-8") as file:
        asked = json.load(file)
    # Bounded by tokens: engines that start at the same time cannot go by what memory is free.
    memory = {"mem_fraction_static": 0.6, "max_total_tokens": 65536}
    engine = sglang.Engine(random_seed=3, cuda_graph_backend_prefill="disabled", **memory, **options)
    greedy = {"temperature": 0, "max_new_tokens": 32}
    found = {}
    for name in ("first", "second"):  # the second time the index knows the answers
        answers = engine.generate(asked, greedy, return_logprob=True)
        found[name] = [
            {
                "ids": answer["output_ids"],
                "logprobs": [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]],
                "steps": answer["meta_info"].get("spec_verify_ct", len(answer["output_ids"]) - 1),
            }
            for answer in answers
        ]
    pattern = {**greedy, "regex": r"(Return|Set) [a-z ]{3,20}\."}
    found["constrained"] = [answer["text"] for answer in engine.generate(asked[:8], pattern)]
    sampled = {"temperature": 1.0, "top_k": 2, "max_new_tokens": 2, "ignore_eos": True}
    # Request by request, torch's attention takes minutes for as many as the others.
    count = 400 if options.get("attention_backend") == "torch_native" else 4000
    found["sampled"] = [answer["output_ids"] for answer in engine.generate([asked[3]] * count, sampled)]
    found["long"] = [
        len(answer["output_ids"])
        for answer in engine.generate(asked[:8], {**sampled, "top_k": -1, "max_new_tokens": 300})
    ]
    with open(out, "w", encoding="utf-8") as file:
        json.dump(found, file)
    engine.shutdown()


if __name__ == "__main__":
    main()
