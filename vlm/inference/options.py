"""Define the options of `clinical-vlm draft`; nothing heavy is imported here, so that --help need not wait."""

import argparse
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from vlm.errors import UserError
from vlm.inference.object_kinds import ALL_OBJECTS

SUBJECT = re.compile(r"(https?://\S+/)?Patient/[A-Za-z0-9\-.]{1,64}|urn:uuid:[0-9a-f-]{36}")
"""A FHIR reference to a patient."""
PROFILES = ("us-core", "ips")
"""Names of the profiles in `vlm.inference.fhir.profiles`."""
PRECISIONS = ("auto", "fastest")
"""Those of `vlm.device.choose_precision` that no machine refuses."""
MOMENT = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d))?", re.ASCII)
"""A FHIR date, or a time with its zone."""


def add_draft_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a case, or a table of them, and of the engine."""
    parser.add_argument("--adapter", default="demo", help="adapter folder, Hub id, or the name demo or ham10000")
    parser.add_argument("--revision", help="commit, tag or branch of an adapter on the Hub")
    parser.add_argument("--site", metavar="FILE", help="recalibration for a site, of `evaluate --recalibrate_on`")
    parser.add_argument("--base", help="base model instead of the adapter's, such as a local copy")
    parser.add_argument("--engine", choices=["torch", "llamacpp", "vllm"], default="torch",
                        help="engine of the language model; llamacpp is quick on a CPU (extra `llamacpp`), vllm is a "
                             "server")  # fmt: skip
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="precision of the engine torch; "
                        "fastest: bf16 on a CPU too, if it multiplies it itself")  # fmt: skip
    parser.add_argument("--vllm_url", metavar="URL", help="address of vLLM, such as http://localhost:8000")
    parser.add_argument("--vllm_model", metavar="NAME", help="name of the LoRA or merged model on that server")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="image file; several times for a "
                        "study, or a folder of DICOM files; never for a case without one")  # fmt: skip
    _add_study_options(parser)
    _add_archive_options(parser)
    parser.add_argument(
        "--vitals",
        default="",
        help='"glucose=8.7, bp=145/90", a series as "glucose=9.1@-48h;11@0h", JSON of these or of FHIR, or a file',
    )
    parser.add_argument("--context", default="", metavar="TEXT", help="the indication, or other text to show in the "
                        "prompt")  # fmt: skip
    parser.add_argument("--signal", metavar="FILE", help="signal such as an ECG, as those for training: .npy, or .csv "
                        "with a column for each channel")  # fmt: skip
    parser.add_argument("--findings", metavar="NAME", help="vocabulary of the table of findings, a name or a .yaml "
                        "file; default: the adapter's")  # fmt: skip
    parser.add_argument("--abstain", action="store_true", help="give no draft that is among the least sure, or of a "
                        "picture unlike those of training")  # fmt: skip
    parser.add_argument("--max_new_tokens", type=int, help="longest draft, in tokens; default: the adapter's")
    parser.add_argument("--max_seconds", type=float, default=600, help="time limit of a draft or a batch")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--fhir", metavar="FILE", help="also write a FHIR Bundle")
    parser.add_argument("--fhir_subject", metavar="REFERENCE", help="subject of the Bundle, such as Patient/123")
    parser.add_argument("--fhir_profile", nargs="+", choices=PROFILES, default=[], metavar="NAME", help="profiles that "
                        "the report of the Bundle claims: us-core, ips; needs --fhir_subject")  # fmt: skip
    parser.add_argument("--fhir_effective", metavar="TIME", help="day or time of the study for these profiles, such as "
                        "2024-03-01; default: that of the DICOM image")  # fmt: skip
    parser.add_argument("--dicom_out", metavar="FOLDER", help="of a DICOM image, also write a Structured Report and a "
                        "PDF as DICOM objects of its study; extra `dicom`")  # fmt: skip
    parser.add_argument("--dicom_objects", nargs="+", choices=ALL_OBJECTS, metavar="KIND", help="which objects: sr "
                        "(Structured Report), pdf, sc (Secondary Capture, a picture of each page); default: sr "
                        "pdf")  # fmt: skip
    parser.add_argument("--explain", metavar="FILE", help="write a picture (.png) of what the draft rests on: heat, "
                        "tinted words, a bar for each vital; extra `explain`")  # fmt: skip
    parser.add_argument("--explain_words", default="", help='words to explain, as "opacity, lower zone"; '
                        "default: findings, places and levels")  # fmt: skip
    many = parser.add_argument_group("many cases", "columns of vitals are found by name")
    many.add_argument("--input", help="table: .csv, .tsv, .xlsx, .jsonl, .parquet or a folder of .parquet files")
    many.add_argument("--rexrank", metavar="FILE", help="studies as ReXrank writes them, in place of --input; --output "
                      "is the same JSON with model_prediction")  # fmt: skip
    many.add_argument("--encoding", metavar="NAME", help="text encoding, such as cp1251; default: detect it")
    many.add_argument("--sheet", metavar="NAME", help="sheet of a workbook; default: the only one with content")
    many.add_argument("--output", default="reports.jsonl", help="JSON Lines file to write, in the order of the table")
    many.add_argument("--images", help="folder of the images; default: the table's folder")
    many.add_argument("--image_column", default="image", help="column of the image's file name")
    many.add_argument("--id_column", help="column of the case's id; default: number the rows")
    many.add_argument("--context_column", help="column of text to show in the prompt")
    many.add_argument("--view_column", help="column of the image's view")
    many.add_argument("--study_column", help="column of the study's id: neighbouring rows of one are one case")
    many.add_argument("--prior_column", help="column of the image of an earlier study")
    many.add_argument("--prior_days_column", help="column of the days from that study to this one")
    many.add_argument("--prior_report_column", help="column of the report of an earlier study")
    many.add_argument("--separator", metavar="TEXT", help='what separates several names in one cell, such as ";"')
    many.add_argument("--batch_size", type=int, default=64, help="cases drafted together")
    many.add_argument("--resume", action="store_true", help="go on after the last whole line of the output")
    many.add_argument("--ray", metavar="ADDRESS", nargs="?", const="local", help="draft on a Ray cluster: auto, "
                      "ray://HOST:10001, or local; extra `ray`. (`accelerate launch infer.py` needs none)")  # fmt: skip
    many.add_argument("--ray_workers", type=int, default=1, help="engines to run at once")
    many.add_argument("--ray_gpus", type=float, default=0, help="GPUs of each engine, also a fraction")


def _add_study_options(parser: argparse.ArgumentParser) -> None:
    study = parser.add_argument_group("a study", "for adapters trained on several images a case")
    study.add_argument("--view", action="append", default=[], metavar="VIEW", help="view of each --image in turn: PA, "
                       'AP, lateral; "" where it is not known')  # fmt: skip
    study.add_argument("--prior", action="append", default=[], metavar="FILE", help="image of an earlier study")
    study.add_argument("--prior_view", action="append", default=[], metavar="VIEW", help="view of each --prior in turn")
    study.add_argument("--prior_days", action="append", default=[], type=float, metavar="DAYS", help="days from the "
                       "earlier study to this one, of each --prior in turn or once for all")  # fmt: skip
    study.add_argument("--prior_report", default="", metavar="TEXT", help="report of the earlier study")


def _add_archive_options(parser: argparse.ArgumentParser) -> None:
    archive = parser.add_argument_group("a study in an archive", "extra `dicom`; credentials: "
                                        "CLINICAL_VLM_DICOMWEB_TOKEN, …_USER and …_PASSWORD, or ~/.netrc")  # fmt: skip
    archive.add_argument("--study", metavar="UID", help="Study Instance UID: draft its radiographs")
    archive.add_argument("--dicomweb", metavar="URL", help="address of the archive, such as "
                         "https://archive.example/dicom-web")  # fmt: skip
    archive.add_argument("--dicomweb_http", action="store_true", help="allow plain http to another machine, which "
                         "others can read")  # fmt: skip
    archive.add_argument("--store", action="store_true", help="store the draft there as a Structured Report, partial "
                         "and unverified")  # fmt: skip


def images_of(arguments: argparse.Namespace) -> list[tuple[str, str, bool, float | None]]:
    """Pair the images of a case with their roles: (file, view, prior, days); raises `UserError` where they do not."""
    views = _paired(arguments.image, arguments.view, "--image", "--view", "")
    prior_views = _paired(arguments.prior, arguments.prior_view, "--prior", "--prior_view", "")
    days = arguments.prior_days
    if len(days) == 1 and arguments.prior:
        days = days * len(arguments.prior)
    prior_days = _paired(arguments.prior, days, "--prior", "--prior_days", None)
    current = [(file, view, False, None) for file, view in zip(arguments.image, views, strict=True)]
    return current + [(file, view, True, time)
                      for file, view, time in zip(arguments.prior, prior_views, prior_days, strict=True)]  # fmt: skip


def _paired(images: Sequence[str], roles: Sequence[Any], image: str, role: str, unknown: Any) -> Sequence[Any]:
    """Return one role an image; raises `UserError` for another number of them than there are images, or none."""
    if roles and len(roles) != len(images):
        raise UserError(f"{role}: {len(roles)} given for {len(images)} of {image}; give one for each, or none")
    return roles or [unknown] * len(images)


def check_draft_options(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for values out of range and for options that exclude each other."""
    for name in ("max_new_tokens", "batch_size", "ray_workers"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}: must be at least 1")
    if not arguments.max_seconds > 0:
        raise UserError("--max_seconds: must be more than 0")
    if (arguments.engine == "vllm") != bool(arguments.vllm_url and arguments.vllm_model):
        raise UserError("--engine vllm: goes with --vllm_url and --vllm_model, and they with it")
    if arguments.precision != "auto" and arguments.engine != "torch":
        raise UserError(f"--precision: {arguments.engine} chooses its own; leave it away, or take --engine torch")
    if arguments.explain_words and not arguments.explain:
        raise UserError("--explain_words: needs --explain FILE, the picture to write")
    if arguments.explain:
        _check_explain(arguments)
    if (arguments.encoding or arguments.sheet) and not arguments.input:
        raise UserError("--encoding and --sheet: are for a table of cases; name it with --input")
    images = images_of(arguments)
    if arguments.input and (images or arguments.vitals):
        raise UserError("--input: a table brings its own images and vitals; leave --image and --vitals away")
    if arguments.rexrank and (arguments.input or images or arguments.vitals or arguments.context or arguments.signal):
        raise UserError("--rexrank: brings its own studies; leave --input and the options of one case away")
    if arguments.rexrank and (arguments.explain or arguments.fhir):
        raise UserError("--rexrank: is for many studies; --explain and --fhir are for one case")
    if arguments.input and arguments.prior_report:
        raise UserError("--prior_report: is for one case; name a table's column of it with --prior_report_column")
    if arguments.input and arguments.context:
        raise UserError("--context: is for one case; name a table's column of it with --context_column")
    if arguments.input and arguments.signal:
        raise UserError("--signal: is for one case")
    if arguments.ray and not arguments.input:
        raise UserError("--ray: is for a table of cases; name it with --input")
    _check_fhir(arguments)
    _check_profile(arguments)
    _check_archive(arguments, bool(images))
    if arguments.dicom_objects and not arguments.dicom_out:
        raise UserError("--dicom_objects: are written to a folder; name it with --dicom_out")
    if arguments.dicom_out and (arguments.input or arguments.rexrank):
        raise UserError("--dicom_out: is for one case; leave --input and --rexrank away")


def engine_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the engine's options: name, base, revision of the adapter, time limit, and the server if there is one."""
    names = ("engine", "base", "revision", "max_seconds", "findings", "site", "abstain", "precision")
    drafts = {name: getattr(arguments, name) for name in names}
    if arguments.engine != "vllm":
        return drafts
    from vlm.inference.backends.vllm import VLLMServer

    return drafts | {"server": VLLMServer(arguments.vllm_url, arguments.vllm_model)}


def cluster_of(arguments: argparse.Namespace) -> Any:
    """Return the Ray cluster that was asked for, or None."""
    if arguments.ray is None:
        return None
    from vlm.inference.on_ray import Cluster

    return Cluster(arguments.ray, arguments.ray_workers, arguments.ray_gpus)


def _check_fhir(arguments: argparse.Namespace) -> None:
    if arguments.fhir and arguments.input:
        raise UserError("--fhir: is for one case; leave --input away")
    if arguments.fhir and not Path(arguments.fhir).resolve().parent.is_dir():
        raise UserError(f"--fhir: {Path(arguments.fhir).parent}: no such folder")
    if arguments.fhir_subject and not arguments.fhir:
        raise UserError("--fhir_subject: is written to a Bundle; name its file with --fhir")
    if arguments.fhir_subject and not SUBJECT.fullmatch(arguments.fhir_subject):
        raise UserError(f"--fhir_subject: {arguments.fhir_subject} is no reference to a patient, such as Patient/123")


def _check_profile(arguments: argparse.Namespace) -> None:
    if arguments.fhir_profile and not (arguments.fhir and arguments.fhir_subject):
        raise UserError("--fhir_profile: is of a Bundle with a subject; give --fhir and --fhir_subject")
    if arguments.fhir_effective and not arguments.fhir_profile:
        raise UserError("--fhir_effective: is for a profile; name it with --fhir_profile")
    if not (moment := arguments.fhir_effective):
        return
    try:
        right = MOMENT.fullmatch(moment) and datetime.fromisoformat(moment)
    except ValueError:
        right = None
    if not right:
        raise UserError(f"--fhir_effective: {moment} is no day or time, such as 2024-03-01 or 2024-03-01T10:11:12Z")


def _check_archive(arguments: argparse.Namespace, has_images: bool) -> None:
    if bool(arguments.study) != bool(arguments.dicomweb):
        raise UserError("--study and --dicomweb: go together, the study's UID and the archive's address")
    if not arguments.study and (arguments.store or arguments.dicomweb_http):
        raise UserError("--store and --dicomweb_http: are for a --study of an archive")
    if arguments.study and (has_images or arguments.input or arguments.rexrank):
        raise UserError("--study: brings its own images; leave --image, --prior, --input and --rexrank away")
    if arguments.study:
        from vlm.inference.dicomweb import check_address, is_uid

        check_address(arguments.dicomweb, arguments.dicomweb_http)
        if not is_uid(arguments.study):
            raise UserError("--study: is no DICOM UID, such as 1.2.840.113619.2")


def _check_explain(arguments: argparse.Namespace) -> None:
    """Check what would otherwise fail only after the draft."""
    file = Path(arguments.explain)
    if arguments.input:
        raise UserError("--explain: explains one case; leave --input away")
    if arguments.abstain:
        raise UserError("--explain: explains a draft that is given out; leave --abstain away")
    if arguments.engine != "torch":
        raise UserError("--explain: only PyTorch's engine has gradients; use --engine torch")
    if file.suffix.lower() != ".png":
        raise UserError(f"--explain: {file}: the picture is a PNG; name it so")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--explain: {file}: no such folder {file.parent}")
