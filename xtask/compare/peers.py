"""Asks hf-mem and `accelerate estimate-memory` about each model on standard input, and prints a line of JSON for each.

Both look models up on a hub. Here the same files come from this machine: hf-mem's HTTP client gets a transport that
answers from a folder, and accelerate's look-up is told that the folder is the repository. Nothing else of them changes.

Input, one line of JSON per model: {"name": ..., "gguf": path, "config": folder with a config.json}
"""

import io
import json
import pathlib
import resource
import signal
import sys
import time
import types
import warnings
from contextlib import redirect_stdout

CONTEXT = int(sys.argv[1])
# A peer that takes longer has no answer for that model.
LIMIT_SECONDS = 45
warnings.filterwarnings("ignore")


def too_long(*_):
    raise TimeoutError(f"no answer within {LIMIT_SECONDS} s")


def timed(ask):
    start = time.perf_counter()
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT_SECONDS)
    try:
        answer = ask()
    except BaseException as error:  # noqa: BLE001 - whatever a peer raises is its answer
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    finally:
        signal.alarm(0)
    return {**answer, "ms": (time.perf_counter() - start) * 1000}


def ask_hf_mem(path):
    import httpx2
    from hf_mem import run

    def serve(request):
        size = path.stat().st_size
        if "/api/models/" in str(request.url):
            return httpx2.Response(200, json=[{"type": "file", "path": path.name, "size": size}])
        wanted = request.headers.get("range", "").removeprefix("bytes=")
        first, _, last = wanted.partition("-")
        first, last = int(first or 0), min(int(last or size - 1), size - 1)
        if request.method == "HEAD":
            return httpx2.Response(200, headers={"content-length": str(size), "accept-ranges": "bytes"})
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last - first + 1)
        return httpx2.Response(206, content=content, headers={"content-range": f"bytes {first}-{last}/{size}"})

    real = httpx2.AsyncClient

    class Client(real):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **{**options, "transport": httpx2.MockTransport(serve)})

    httpx2.AsyncClient = Client
    try:
        result = run("local/model", gguf_file=path.name, experimental=True, max_model_len=CONTEXT)
    finally:
        httpx2.AsyncClient = real
    return {"bytes": int(result.total_memory), "kv": result.kv_cache}


def ask_accelerate(folder):
    from accelerate.commands import estimate

    config = json.loads((folder / "config.json").read_text())
    estimate.verify_on_hub = lambda repo, token=None: types.SimpleNamespace(config=config, library_name="transformers")
    arguments = estimate.estimate_command_parser().parse_args([str(folder), "--library_name", "transformers"])
    with redirect_stdout(io.StringIO()):
        rows = estimate.gather_data(arguments)
    sizes = {str(row[0]): row[2] for row in rows}
    return {"bytes": int(sizes["int4"]), "float16": int(sizes["float16"])}


def main():
    import accelerate.commands.estimate  # noqa: F401 - loading the libraries is not what is timed
    import hf_mem  # noqa: F401

    # Some model classes make their weights before they are dropped.
    resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, 12 << 30))
    for line in sys.stdin:
        model = json.loads(line)
        gguf, folder = pathlib.Path(model["gguf"]), pathlib.Path(model["config"])
        answers = {"hf_mem": timed(lambda: ask_hf_mem(gguf)), "accelerate": timed(lambda: ask_accelerate(folder))}
        print(json.dumps({"name": model["name"], **answers}), flush=True)


main()
