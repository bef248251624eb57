"""Drafting: the first word, words a second, many cases against one at a time, and the time to start.

    python -m benchmarks.infer --adapter runs/demo/adapter --json infer.json

Cases are those of the demo's test split. llama.cpp is measured on the same GGUF file, threads and prompt length where
`xllamacpp` is installed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import copy_rate, timed
from vlm.adapter import load
from vlm.data.ingest.sources import load_cohort
from vlm.inference.backends.llamacpp import LlamaCpp
from vlm.inference.engine import Engine, ReportEngine
from vlm.inference.many import TableJob
from vlm.inference.open_engine import LlamaCppEngine, make_engine
from vlm.inference.rows import TableColumns
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.weights import gguf_of_wheel

PROJECT = Path(__file__).resolve().parent.parent
VITALS = ("glucose", "systolic", "diastolic", "age")
Case = tuple[str | None, dict[str, Any] | None]


def test_cases(count: int) -> list[Case]:
    """Image and vitals of the demo's test cases."""
    from vlm.config.parsing import parse_config

    config, _ = parse_config(["--config", str(PROJECT / "configs" / "demo.yaml")])
    cohort = load_cohort(config.data)
    rows = cohort.split("test").select(range(count))
    names = cohort.schema.names
    return [
        (row["images"][0]["path"] if row["images"] else None,
         {name: x for name, x in zip(names, row["vitals"], strict=True) if x == x and name in VITALS})
        for row in rows
    ]  # fmt: skip


def first_word(engine: Engine, case: Case) -> float:
    """Seconds from a read case to its first token, the model being loaded."""
    example, _ = engine.prepare(*case)
    return timed(lambda: next(engine.draft([example], 1, 1)), repeats=5).median


def decoding(engine: Engine, case: Case, tokens: int) -> float:
    """Tokens a second after the first, of one case; the end of the report is not allowed to come."""
    example, _ = engine.prepare(*case)
    if isinstance(engine, LlamaCppEngine):
        prompt = np.random.default_rng(0).normal(size=(40, engine.llama.hidden_size)) * 0.1
        llama = engine.llama
        work: Callable[[int], Any] = lambda n: list(llama.generate([prompt], 0, n, -1))  # noqa: E731
    else:
        assert isinstance(engine, ReportEngine)
        model, batch = engine.model, engine.collate([example])
        fixed = model.prefix_kv_cache()
        work = lambda n: model.generate(batch, n, fixed, min_new_tokens=n)  # noqa: E731
    with engine.drafting():
        times = [timed(partial(work, n)).median for n in (1, tokens)]
    return (tokens - 1) / (times[1] - times[0])


def agreement(engine: Engine, other: Engine, cases: list[Case], new_tokens: int) -> float:
    """Share of cases whose draft is the same to the letter."""
    ours, theirs = (e.predict(cases, batch_size=32, max_new_tokens=new_tokens) for e in (engine, other))
    return sum(a.text == b.text for a, b in zip(ours, theirs, strict=True)) / len(cases)


def many(engine: Engine, cases: list[Case], batch: int, new_tokens: int) -> dict[str, float]:
    """The same cases one call at a time, and as a table; and on how many the drafts agree."""
    start = time.perf_counter()
    alone = [engine.predict([case], max_new_tokens=new_tokens)[0].text for case in cases]
    one = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as name:
        table, output = Path(name) / "cases.csv", Path(name) / "reports.jsonl"
        rows = [",".join(str(cell) for cell in (image or "", *((vitals or {}).get(v, "") for v in VITALS)))
                for image, vitals in cases]  # fmt: skip
        table.write_text("\n".join([",".join(("image", *VITALS)), *rows]) + "\n")
        job = TableJob(table, output, Path("/"), TableColumns(), batch, new_tokens)
        start = time.perf_counter()
        job.run(engine, {})
        together = time.perf_counter() - start
        texts = [json.loads(line)["text"] for line in output.read_text().splitlines()]
    agreement = sum(a == b for a, b in zip(alone, texts, strict=True)) / len(cases)
    return {"one_at_a_time_s": one / len(cases), "table_s": together / len(cases), "batch_speedup": one / together,
            "batch_agreement": agreement}  # fmt: skip


def start_times(adapter: str, case: Case) -> dict[str, float]:
    """Seconds from a command to its first word, and to its help."""
    image, vitals = case
    words = ", ".join(f"{name}={value:g}" for name, value in (vitals or {}).items())
    draft = [sys.executable, "infer.py", "--adapter", adapter, "--vitals", words]
    draft += ["--image", str(image)] if image else []
    return {"infer_s": timed(lambda: _first_byte(draft)).median,
            "infer_llamacpp_s": timed(lambda: _first_byte([*draft, "--engine", "llamacpp"])).median,
            "help_s": timed(lambda: _first_byte([sys.executable, "train_lora.py", "--help"])).median}  # fmt: skip


def _first_byte(command: list[str]) -> None:
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.kill()


def llama_cpp(model: ClinicalVLM, tokens: int) -> float | None:
    """llama.cpp's tokens a second on the GGUF file that the base was made of; None where it is not installed."""
    try:
        import xllamacpp
    except ImportError:
        return None
    config = model.model_config.llm
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf_of_wheel(config.base, config.sha256))
    params.cpuparams.n_threads = torch.get_num_threads()
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, True
    server = xllamacpp.Server(params)
    request = {"prompt": "word " * 40, "n_predict": tokens, "temperature": 0.0, "ignore_eos": True,
               "cache_prompt": False}  # fmt: skip
    rates = [server.handle_completions(request)["timings"]["predicted_per_second"] for _ in range(4)]
    return sorted(rates[1:])[1]


def bare_llama_cpp(model: ClinicalVLM, engine: LlamaCppEngine, tokens: int) -> float:
    """llama.cpp's tokens a second on the base's own GGUF file through its C interface: no server, no adapter."""
    config, merged = model.model_config.llm, engine.llama
    engine.llama = LlamaCpp(gguf_of_wheel(config.base, config.sha256), torch.get_num_threads())
    try:
        return decoding(engine, (None, None), tokens)
    finally:
        engine.llama.close()
        engine.llama = merged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default="runs/demo/adapter")
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48, help="tokens of a report when decoding is timed")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments = parser.parse_args()
    cases = test_cases(arguments.cases)
    flat: dict[str, Any] = {f"start.{k}": v for k, v in start_times(arguments.adapter, cases[0]).items()}
    model = load(arguments.adapter)
    engine = ReportEngine(model)
    flat["infer.first_word_s"] = first_word(engine, cases[0])
    flat["infer.tokens_per_s"] = decoding(engine, cases[0], arguments.tokens)
    read = sum(p.nbytes for p in model.llm.parameters())
    flat["infer.floor_tokens_per_s"] = copy_rate() / read
    flat |= {f"infer.{k}": v for k, v in many(engine, cases, arguments.batch, arguments.tokens).items()}
    fastest = make_engine("torch", Path(arguments.adapter), precision="fastest")  # bf16, where the CPU multiplies it
    flat |= {f"infer.fastest_{k}": v for k, v in many(fastest, cases, arguments.batch, arguments.tokens).items()}
    flat["infer.fastest_greedy_agreement"] = agreement(engine, fastest, test_cases(100), arguments.tokens)
    theirs = llama_cpp(model, arguments.tokens)
    if theirs is not None:
        quick = make_engine("llamacpp", Path(arguments.adapter))
        assert isinstance(quick, LlamaCppEngine)
        rate = decoding(quick, cases[0], arguments.tokens)
        bare = bare_llama_cpp(model, quick, arguments.tokens)
        flat |= {"infer.llamacpp_server_tokens_per_s": theirs, "infer.llamacpp_bare_tokens_per_s": bare}
        theirs = max(theirs, bare)  # the server also samples; the better of the two is the mark
        flat |= {
            "infer.torch_vs_llamacpp": flat["infer.tokens_per_s"] / theirs,
            "infer.engine_tokens_per_s": rate,
            "infer.decode_vs_llamacpp": rate / theirs,
            "infer.engine_first_word_s": first_word(quick, cases[0]),
            **{f"infer.llamacpp_{k}": v for k, v in many(quick, cases, arguments.batch, arguments.tokens).items()},
            "infer.greedy_agreement": agreement(engine, quick, test_cases(100), arguments.tokens),
        }
    print("| name | value |\n| --- | --- |")
    print(*(f"| {name} | {value:.3f} |" for name, value in flat.items()), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
