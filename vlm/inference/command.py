"""Draft from the command line: check the inputs, load the adapter, stream one draft or write those of a table."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from vlm.adapter import open_adapter
from vlm.adapter.site_calibration import read_site
from vlm.data.case import CaseSpec
from vlm.data.images.image import read_file
from vlm.data.images.square import decode_square
from vlm.errors import UserError
from vlm.inference.context import check_context
from vlm.inference.dicom_folder import study_from_dicom
from vlm.inference.dicom_report import SourceImages
from vlm.inference.engine import Engine
from vlm.inference.fhir import context_of, from_fhir, is_fhir
from vlm.inference.filing import NOWHERE, Filing
from vlm.inference.open_engine import open_engine, prepare_libraries
from vlm.inference.signal_input import read_signal
from vlm.inference.study_images import Images, StudyImage, as_images, read_study
from vlm.inference.vitals_argument import ENDINGS, read_vitals
from vlm.plain import printable
from vlm.report import Report

if TYPE_CHECKING:  # one case needs no tables, and their libraries take a second to import
    from vlm.inference.line_counts import Counts
    from vlm.inference.many import TableJob
    from vlm.inference.on_ray import Cluster


class OpenedCase(NamedTuple):
    """A case with checked inputs, and the engine that drafts it."""

    engine: Engine
    folder: Path
    """Folder of the adapter."""
    images: list[StudyImage]
    values: dict[str, Any]
    context: str
    prior_report: str
    signal: str | None
    noted: tuple[str, ...]
    """Warnings on what was left out of a FHIR file or a folder of DICOM files."""
    source: SourceImages | None = None
    """Whose study the images are, where the draft is written as DICOM objects."""
    filing: Filing = NOWHERE

    @classmethod
    def of(
        cls,
        adapter: str,
        images: Images,
        vitals: str,
        context: str = "",
        prior_report: str = "",
        signal: str | None = None,
        filing: Filing = NOWHERE,
        **engine: Any,
    ) -> "OpenedCase":
        """Check the inputs before the model is loaded, so that a typing error costs no wait.

        `engine` takes the arguments of `open_engine`. Raises `UserError` for an unreadable image, a role or number of
        images that the adapter does not know, an unknown or non-numeric vital, too long a context, an unreadable
        signal, an adapter that cannot be loaded, and as `Filing.claim` and `Filing.source` do.
        """
        prepare_libraries()
        opened = open_adapter(adapter, engine.get("revision"))
        schema = opened.config.spec.schema
        given = read_vitals(vitals)
        where = vitals.strip() if vitals.strip().endswith(ENDINGS) else "--vitals"
        values, noted = from_fhir(given, schema, where) if is_fhir(given) else (given, ())
        if is_fhir(given):
            context, more = context_of(given, where, context)
            noted = (*noted, *more)
        schema.parse(values, "--vitals")
        check_context(context)
        check_context(prior_report, "prior report")
        spec = opened.config.spec
        given_images, left_out = _of_folder(as_images(images), spec)
        noted = (*noted, *left_out)
        read_study(given_images, spec, lambda image: decode_square(read_file(Path(image)), str(image), spec.image))
        read_signal(signal, spec)
        filing.claim(given_images)
        source = filing.source(given_images, opened.path)
        noted = (*noted, *(source.notes if source else ()))
        drafter = open_engine(opened, **engine)
        return cls(
            drafter, opened.path, given_images, values, context, prior_report, signal, tuple(noted), source, filing
        )

    def draft(self, max_new_tokens: int | None, stream: TextIO | None) -> Report:
        """Draft the report, streaming its words to `stream`, and file it as `filing` says.

        Raises `UserError` if the disk is full, and as `Filing.file` does.
        """
        case = (self.images, self.values, self.context, self.prior_report, self.signal)
        report = self.engine.predict([case], max_new_tokens=max_new_tokens, streamer=_streamer(self.engine, stream))[0]
        if stream is not None and self.engine.abstain:  # not streamed
            print(report.text or report.no_draft(), file=stream)
        report = replace(report, warnings=(*self.noted, *report.warnings))
        self.filing.file(report, self.engine, self.folder, self.images, self.context, self.source)
        return report


def _of_folder(images: list[StudyImage], spec: CaseSpec) -> tuple[list[StudyImage], list[str]]:
    """Read the headers of a folder of DICOM files that stands for the only image; returns what was left out as well."""
    if len(images) != 1 or not isinstance(images[0].image, str | Path) or not Path(images[0].image).is_dir():
        return images, []
    if images[0] != StudyImage(images[0].image):
        raise UserError(f"{images[0].image}: a folder of DICOM files tells views and times by itself; leave them away")
    return study_from_dicom(images[0].image, spec.study_images, spec.study.views if spec.study else ())


def draft_case(
    adapter: str,
    images: Images,
    vitals: str,
    max_new_tokens: int | None,
    stream: TextIO | None,
    context: str = "",
    prior_report: str = "",
    signal: str | None = None,
    filing: Filing = NOWHERE,
    **engine: Any,
) -> Report:
    """Draft one report as `OpenedCase.draft` does; `engine` takes the arguments of `open_engine`."""
    case = OpenedCase.of(adapter, images, vitals, context, prior_report, signal, filing, **engine)
    return case.draft(max_new_tokens, stream)


def draft_table(
    adapter: str, job: "TableJob", resume: bool, cluster: "Cluster | None" = None, **engine: Any
) -> "Counts":
    """Draft the report of every row of a table.

    One process does it as in `vlm.inference.many`, several that were launched together as in `vlm.inference.parts`, a
    `cluster` as in `vlm.inference.on_ray`; `engine` takes the arguments of `open_engine`. The job is checked before a
    model is loaded. Raises `UserError` as `TableJob.check` and `load` do.
    """
    from vlm.inference.parts import MultiProcessJob, RankShare

    prepare_libraries()
    opened = open_adapter(adapter, engine.get("revision"))
    schema = opened.config.spec.schema
    if opened.config.spec.study is None and (asked := job.columns.of_studies):
        raise UserError(f"--{asked[0]}{'' if asked[0] == 'separator' else '_column'}: the adapter was trained on one "
                        "image a case, without view or time")  # fmt: skip
    if site := engine.get("site"):
        read_site(site, opened)
        job = replace(job, site=Path(site))
    length = job.max_new_tokens or opened.config.spec.max_new_tokens
    job = replace(job, abstain=engine.get("abstain", False), max_new_tokens=length)
    metadata = job.check(opened.path, schema, resume)
    shared = MultiProcessJob(job, RankShare()) if cluster else MultiProcessJob.needed(job, RankShare.of_environment())
    if shared:
        shared.check(resume)
    if cluster:
        from vlm.inference.on_ray import draft_on_ray

        return draft_on_ray(job, adapter, schema, metadata, cluster, engine)
    return (shared or job).run(open_engine(opened, **engine), metadata)


def _streamer(engine: Engine, stream: TextIO | None) -> Any:
    if stream is None or engine.abstain:  # a draft that may be withheld is shown only when it is judged
        return None
    from transformers import TextStreamer

    class TokenStreamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            print(printable(text), end="\n" if stream_end else "", flush=True, file=stream)

    return TokenStreamer(engine.model.tokenizer, skip_special_tokens=True)
