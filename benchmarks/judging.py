"""Time what a draft costs more for saying how far to rely on it: label sets, sentences, contradictions, findings.

    python -m benchmarks.judging runs/demo/adapter demo --cases 50

The same drafts are judged by an engine with the adapter's thresholds and by one without any, in turns; both draft one
case at a time. The ratio of the times is one run's on one machine; the drafts are the same words.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np

from vlm import ClinicalVLM
from vlm.config.parsing import parse_config
from vlm.data.case import Example
from vlm.data.ingest.sources import load_cohort
from vlm.evaluation.evaluate import plain_splits
from vlm.inference.engine import ReportEngine
from vlm.reliability.thresholds import Reliability
from vlm.report import Report


def timed(engine: ReportEngine, examples: list[Example]) -> tuple[list[Report], np.ndarray]:
    """Draft the cases one by one; returns the reports and the seconds of each."""
    reports, seconds = [], []
    for example in examples:
        start = time.perf_counter()
        reports += list(engine.reports([(example, ())], 1))
        seconds.append(time.perf_counter() - start)
    return reports, np.array(seconds)


def rounds(engine: ReportEngine, examples: list[Example], count: int) -> Iterator[tuple[float, float]]:
    """Yield the median seconds of a draft with and without the thresholds, in turns."""
    kept = engine.model.reliability
    for _ in range(count):
        medians = []
        for reliability in (kept, Reliability()):
            engine.model.reliability = reliability
            reports, seconds = timed(engine, examples)
            if reliability == kept and not any(report.label_sets or report.sentences for report in reports):
                raise SystemExit("the adapter keeps no thresholds")
            medians.append(float(np.median(seconds)))
        yield medians[0], medians[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="adapter folder")
    parser.add_argument("config", help="config of its cases, such as demo; further options follow it")
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    options, further = parser.parse_known_args()
    config, _ = parse_config(["--config", options.config, *further, "--evaluation.cases", str(options.cases)])
    model = ClinicalVLM.from_pretrained(options.adapter)
    test = plain_splits(model, load_cohort(config.data), config)["test"]
    examples = [test[index] for index in range(min(options.cases, len(test)))]
    engine = ReportEngine(model)
    timed(engine, examples[:3])  # warm
    pairs = np.array(list(rounds(engine, examples, options.rounds)))
    ratios = pairs[:, 0] / pairs[:, 1]
    judged, plain = 1000 * np.median(pairs, axis=0)
    spread = f"{ratios.min():.3f} to {ratios.max():.3f} of {options.rounds} rounds"
    print(f"a draft: {judged:.0f} ms judged, {plain:.0f} not; ratio {np.median(ratios):.3f} ({spread})")


if __name__ == "__main__":
    main()
