"""Asks vLLM's own planning functions and its parser, without a model and without a GPU.

    python planner.py QUESTIONS NUMBER SEED < COMMANDS

QUESTIONS: JSON lines with a "question" each, as recorded in fixtures/truth/vllm/planner-0.33.0.jsonl.gz (unzipped).
NUMBER more questions are drawn from SEED. Every line of COMMANDS is a JSON list, the arguments of `vllm serve`.
Prints one JSON line for each question ({"question", "answer"}) and for each command ({"command", "refused"}).
"""

import contextlib
import copy
import io
import json
import random
import sys
from types import SimpleNamespace

import torch
import vllm
from vllm.v1.core import kv_cache_config_builder as builders
from vllm.v1.core import kv_cache_planning as planning
from vllm.v1.core import kv_cache_utils as utils
from vllm.v1 import kv_cache_interface as interface
from vllm.v1.kv_cache_layout import KVCacheLayout

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "uint8": torch.uint8}


class Loose(SimpleNamespace):
    """A configuration of which only what a question says is set."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def spec(of):
    kind, size = of["kind"], of["block_size"]
    padded = {"page_size_padded": of["page_size_padded"]} if of.get("page_size_padded") else {}
    if kind == "mamba":
        return interface.MambaSpec(
            block_size=size,
            shapes=tuple(tuple(shape) for shape in of["shapes"]),
            dtypes=(TYPES[of["dtype"]],) * len(of["shapes"]),
            mamba_cache_mode=of["mode"],
            num_speculative_blocks=of["spec_blocks"],
            **padded,
        )
    common = dict(block_size=size, num_kv_heads=of["heads"], head_size=of["head_size"], dtype=TYPES[of["dtype"]], **padded)
    if kind == "full":
        return interface.FullAttentionSpec(sliding_window=of.get("window"), **common)
    if kind == "sliding":
        return interface.SlidingWindowSpec(sliding_window=of["window"], **common)
    if kind == "chunked":
        return interface.ChunkedLocalAttentionSpec(attention_chunk_size=of["chunk"], **common)
    return interface.MLAAttentionSpec(**common)


def configuration(question):
    layout = KVCacheLayout["LBNHC"]
    length = question["max_model_len"]
    return Loose(
        model_config=Loose(
            max_model_len=length,
            original_max_model_len=-1 if question.get("fit") else length,
            hf_config=Loose(),
            hf_text_config=Loose(),
            is_encoder_decoder=False,
        ),
        parallel_config=Loose(
            decode_context_parallel_size=question.get("dcp", 1),
            prefill_context_parallel_size=1,
            tensor_parallel_size=1,
            pipeline_parallel_size=len(question["workers"]),
            world_size=1,
            data_parallel_size=1,
        ),
        scheduler_config=Loose(
            disable_hybrid_kv_cache_manager=question.get("no_hybrid", False),
            max_num_batched_tokens=question["batched"],
            max_num_encoder_input_tokens=question["batched"],
            max_num_seqs=128,
        ),
        cache_config=Loose(
            num_gpu_blocks_override=question.get("override"),
            block_size=16,
            mamba_cache_mode="align",
            enable_prefix_caching=True,
            kv_cache_layout=layout,
            get_resolved_kv_cache_layout=lambda: layout,
            gpu_memory_utilization=0.9,
            is_attention_free=False,
        ),
        attention_config=Loose(),
        device_config=Loose(device_type="cuda"),
        num_prefill_lookahead_tokens=0,
        num_lookahead_tokens=0,
        num_speculative_tokens=0,
        max_in_flight_tokens=question["in_flight"],
        max_concurrent_batches=1,
        use_v2_model_runner=True,
    )


def answer(question):
    config = configuration(question)
    workers = [{name: spec(of) for name, of in worker} for worker in question["workers"]]
    out = {}
    try:
        groups = planning.get_global_kv_cache_groups(config, workers)
        builder = builders.get_kv_cache_config_builder(config)
        shares = [planning._project_kv_cache_groups_to_worker(groups, worker) for worker in workers]
        out["groups"] = [
            {
                "layers": group.layer_names,
                "type": type(group.kv_cache_spec).__name__,
                "block_size": group.kv_cache_spec.block_size,
                "page_size": group.kv_cache_spec.page_size_bytes,
            }
            for group in groups
        ]
        out["bytes_per_block"] = [planning._pool_bytes_per_block_from_builder(builder, config, share) for share in shares]
        out["request_bytes"] = [planning._max_memory_usage_bytes_from_groups(builder, config, share) for share in shares]
        try:
            configs = planning.get_kv_cache_configs(config, workers, list(question["memory"]), copy.deepcopy(groups))
            scheduler = utils.generate_scheduler_kv_cache_config(configs)
            out["num_blocks"] = scheduler.num_blocks
            out["max_model_len"] = config.model_config.max_model_len
            out["tokens"], out["concurrency"] = utils.get_kv_cache_capacity(config, scheduler)
        except ValueError as error:
            out["error"] = str(error)
    except (ValueError, NotImplementedError, AssertionError) as error:
        out["refused"] = f"{type(error).__name__}: {error}"
    return out


def layers(draw):
    """Layers of one or several kinds, as models have them and as none has."""
    base = {"heads": draw.choice([1, 2, 4, 8]), "head_size": draw.choice([64, 128, 256]), "dtype": draw.choice(["float32", "bfloat16"])}
    size = draw.choice([16, 16, 32, 64])
    window = draw.choice([1, 100, 128, 1024, 4096])
    full = {"kind": "full", "block_size": size, **base}
    sliding = {"kind": "sliding", "window": window, "block_size": size, **base}
    chunked = {"kind": "chunked", "chunk": draw.choice([512, 8192]), "block_size": size, **base}
    state = {
        "kind": "mamba",
        "block_size": draw.choice([16, size, 128]),
        "shapes": [[3, draw.choice([64, 1024])], [draw.choice([2, 4]), 64, 64]],
        "dtype": "float32",
        "mode": draw.choice(["align", "none"]),
        "spec_blocks": draw.choice([0, 0, 2]),
    }
    latent = {"kind": "mla", "block_size": size, "heads": 1, "head_size": 576, "dtype": "bfloat16"}
    selector = {"kind": "mla", "block_size": size, "heads": 1, "head_size": 132, "dtype": "uint8"}
    some, more = draw.randint(1, 12), draw.randint(1, 26)
    found = draw.choice(
        [
            [full] * some,
            [full] * some + [sliding] * more,
            [full] * some + [chunked] * more,
            [full] * some + [state] * more,
            [full] * some + [sliding] * more + [state] * some,
            [latent] * some,
            [latent, selector] * some,
            [full] * some + [{**full, "heads": 2 * full["heads"]}] * more,
            [sliding] * some,
            [state] * some,
        ]
    )
    if draw.random() < 0.5:
        draw.shuffle(found)
    return found


def drawn(draw):
    names = [[f"layer_{index}", of] for index, of in enumerate(layers(draw))]
    stages = min(draw.choice([1, 1, 1, 2, 3]), len(names))
    cuts = [len(names) * stage // stages for stage in range(stages + 1)]
    memory = int(2 ** draw.uniform(16, 36))
    batched = draw.choice([512, 2048, 8192])
    question = {
        "workers": [names[start:end] for start, end in zip(cuts, cuts[1:])],
        "max_model_len": draw.choice([16, 100, 1000, 4096, 32768, 131072]),
        "batched": batched,
        "in_flight": batched * draw.choice([1, 2]),
        "memory": [memory + draw.randint(0, memory // 4) for _ in range(stages)],
        "no_hybrid": draw.random() < 0.1,
        "fit": draw.random() < 0.2,
    }
    if draw.random() < 0.1:
        question["dcp"] = draw.choice([2, 4])
    return question


def refusal(parser, command):
    """What the parser says about a command it does not take; `None` for one that it takes."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(command)
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1:] or ["refused"]
    return None


def main():
    path, number, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    out = sys.stdout
    with open(path) as file:
        questions = [json.loads(line)["question"] for line in file]
    draw = random.Random(seed)
    questions += [drawn(draw) for _ in range(number)]
    print(json.dumps({"version": vllm.__version__}), file=out)
    for question in questions:
        print(json.dumps({"question": question, "answer": answer(question)}), file=out)
    commands = [json.loads(line) for line in sys.stdin]
    if commands:
        from vllm import platforms

        # The parser's defaults ask for a device; where there is none, any answers will do to read arguments.
        if not platforms.current_platform.device_type:
            from vllm.platforms.cpu import CpuPlatform

            platforms._current_platform = CpuPlatform()
            for name, module in list(sys.modules.items()):
                if name.startswith("vllm") and "current_platform" in vars(module):
                    module.current_platform = platforms._current_platform
        from vllm.entrypoints.common.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        try:
            parser = make_arg_parser(FlexibleArgumentParser())
        except RuntimeError as error:
            # The parser's defaults ask for a device, and there is none.
            print(json.dumps({"unparsed": str(error)}), file=out)
            return
        for command in commands:
            print(json.dumps({"command": command, "refused": refusal(parser, command)}), file=out)


if __name__ == "__main__":
    main()
