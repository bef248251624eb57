"""`python -m vlm.evaluation ADAPTER --data CONFIG_OR_TABLE --output DIR`, and `… compare RUN RUN …`."""

import argparse
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from vlm.errors import UserError, run_program
from vlm.plain import escaped


def main() -> None:
    if sys.argv[1:2] == ["compare"]:
        parser = argparse.ArgumentParser(
            prog="vlm.evaluation compare", description="Runs side by side, paired by case."
        )
        parser.add_argument("runs", nargs="+", help="run folders; the first is what the others are compared with")
        arguments = parser.parse_args(sys.argv[2:])
        from vlm.evaluation.compare import compare

        print(compare(arguments.runs))
        return
    parser = argparse.ArgumentParser(prog="vlm.evaluation", description="Test an adapter on unseen cases.")
    parser.add_argument("adapter", help="adapter folder or Hub id")
    parser.add_argument("--data", required=True, help="config (.yaml) that names the cases, or a table of test cases")
    parser.add_argument("--output", required=True, help="folder to write, new or empty")
    parser.add_argument("--revision", help="commit, tag or branch of an adapter on the Hub")
    parser.add_argument("--base", help="base model in place of the one that the adapter names")
    arguments, overrides = parser.parse_known_args()
    output = Path(arguments.output)
    test_adapter(arguments.adapter, arguments.data, output, arguments.base, overrides, arguments.revision)


def test_adapter(
    adapter: str, data: str, output: Path, base: str | None, overrides: list[str], revision: str | None = None
) -> None:
    """Load, check that data and adapter belong together, measure, write; raises `UserError` for what does not fit."""
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: not empty; name a new folder with --output")
    from vlm.adapter import load, open_adapter
    from vlm.atomic import staged
    from vlm.config import Config, DataConfig
    from vlm.config.parsing import parse_config
    from vlm.data.ingest.sources import load_cohort
    from vlm.evaluation.evaluate import evaluate
    from vlm.evaluation.learned import load_learned
    from vlm.evaluation.summary import summary_lines
    from vlm.locks import locked

    opened = open_adapter(adapter, revision)
    given = opened.config
    if data.endswith((".yaml", ".yml")):
        config, _ = parse_config(["--config", data, *overrides])
    else:
        config, _ = parse_config(overrides)
        table = replace(config.data.table, file=Path(data).name, labels=list(given.spec.labels),
                        vitals=list(given.spec.schema.vitals))  # fmt: skip
        table_data: DataConfig = replace(config.data, source="table", root=str(Path(data).parent), table=table)
        config = Config(data=replace(table_data, split=replace(config.data.split, validation=0.0, test=1.0)),
                        evaluation=config.evaluation)  # fmt: skip
    cohort = load_cohort(config.data)
    for kind, ours, theirs in (("vitals", given.spec.schema.names, cohort.schema.names),
                               ("labels", given.spec.labels, cohort.labels)):  # fmt: skip
        if ours != theirs:
            raise UserError(f"{data}: its {kind} are {', '.join(theirs) or 'none'}, the adapter's {', '.join(ours)}")
    learned = load_learned(config.evaluation.learned_metrics)
    print(cohort.describe(), *(escaped(f"warning: {text}") for text in cohort.warnings), sep="\n")
    model = load(opened, base=base)
    config = replace(config, run=replace(config.run, name=Path(adapter).name))
    with locked(output), nullcontext(output) if output.exists() else staged(output, sealed=False) as place:
        metrics = evaluate(model, cohort, config, place, learned=learned)
    print(*summary_lines(metrics), f"page: {output / 'report.html'}", sep="\n")


if __name__ == "__main__":
    run_program(main)
