"""One engine on a GPU: answers to the prompts of a file, as JSON. Run by test_speculation.py."""

import json
import sys

GREEDY = {"temperature": 0, "max_new_tokens": 32}


def steps(answer):
    return answer["meta_info"].get("spec_verify_ct", len(answer["output_ids"]) - 1)


def said(engine, asked):
    return [
        {
            "ids": answer["output_ids"],
            "logprobs": [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]],
            "steps": steps(answer),
        }
        for answer in engine.generate(asked, GREEDY, return_logprob=True)
    ]


def states(engine, asked):
    """Hidden states, twice of each prompt."""
    found = []
    for prompt in asked:
        ids = engine.tokenizer_manager.tokenizer.encode(prompt)
        for _ in range(2):
            answer = engine.generate(input_ids=ids, sampling_params=GREEDY, return_hidden_states=True)
            about = answer["meta_info"]
            found.append(
                {
                    "prompt": ids, "ids": answer["output_ids"], "states": about["hidden_states"],
                    "cached": about["cached_tokens"], "steps": steps(answer),
                }
            )  # fmt: skip
    return found


def renew(engine, path):
    """The same weights again, and graphs captured anew."""
    from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqInput

    asked = UpdateWeightFromDiskReqInput(model_path=path, recapture_cuda_graph=True)
    updated = engine.tokenizer_manager.update_weights_from_disk(asked, None)
    assert engine.loop.run_until_complete(updated)[0]


def main() -> None:
    """Usage: speculation_child.py OPTIONS_JSON PROMPTS OUT."""
    import sglang

    options, prompts, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    with open(prompts, encoding="utf-8") as file:
        asked = json.load(file)
    # Bounded by tokens: engines that start at the same time cannot go by what memory is free.
    memory = {"mem_fraction_static": 0.6, "max_total_tokens": 65536}
    engine = sglang.Engine(random_seed=3, cuda_graph_backend_prefill="disabled", **memory, **options)
    # The second time the index knows the answers.
    found = {name: said(engine, asked) for name in ("first", "second")}
    pattern = {**GREEDY, "regex": r"(Return|Set) [a-z ]{3,20}\."}
    found["constrained"] = [answer["text"] for answer in engine.generate(asked[:8], pattern)]
    sampled = {"temperature": 1.0, "top_k": 2, "max_new_tokens": 2, "ignore_eos": True}
    # Request by request, torch's attention takes minutes for as many as the others.
    count = 400 if options.get("attention_backend") == "torch_native" else 4000
    found["sampled"] = [answer["output_ids"] for answer in engine.generate([asked[3]] * count, sampled)]
    found["long"] = [
        len(answer["output_ids"])
        for answer in engine.generate(asked[:8], {**sampled, "top_k": -1, "max_new_tokens": 300})
    ]
    if options.get("enable_return_hidden_states"):
        found["states"] = states(engine, asked[:4])
    if out.endswith(("fa3.json", "hybrid.json")):
        renew(engine, options["model_path"])
        found |= {name: said(engine, asked) for name in ("renewed", "renewed again")}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(found, file)
    engine.shutdown()


if __name__ == "__main__":
    main()
