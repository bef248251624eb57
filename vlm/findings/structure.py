"""Make the table of findings of a draft: what each sentence says of a finding, and the probability of its label."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from vlm.findings.labeller import Labeller, Mention, sentence_spans
from vlm.report import StatedFinding


def findings_of_labels(labels: Iterable[str], names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Map labels to the findings that they stand for: that of the same name, or the one that `given` names.

    A label for which `given` has a phrase, such as `opacity in the right lung`, stands for no finding as a whole.
    """
    return {label: label for label in labels if label in names} | {
        label: finding for label, finding in given.items() if " " not in finding
    }


def statements_of_labels(labels: Iterable[str], labeller: Labeller, given: Mapping[str, str]) -> dict[str, Mention]:
    """Map labels to what a text says where they are present: a finding, or with a phrase its sides and zones too.

    A label whose phrase is not read as one finding is left out.
    """
    whole = findings_of_labels(labels, labeller.names, given)
    found = {label: Mention(finding, "present") for label, finding in whole.items()}
    for label, phrase in given.items():
        read = labeller.mentions(phrase) if " " in phrase else []
        if len(read) == 1 and read[0].status == "present":
            found[label] = read[0]
    return found


def stated_findings(
    parts: Iterable[tuple[str, str]],
    labeller: Labeller,
    probabilities: Mapping[str, float],
    label_findings: Mapping[str, str],
) -> tuple[StatedFinding, ...]:
    """List the findings of a draft in the order of its sentences; what a sentence says twice stands there once.

    `parts` are (name of the section, text), the name empty outside of sections. `probabilities` are those of the
    labels, and `label_findings` names the finding of a label whose name is another. The probability is null where no
    label stands for a finding, and where several do. It is that of the label being present, whatever the draft says.
    """
    stands_for = findings_of_labels(probabilities, labeller.names, label_findings)
    found: dict[StatedFinding, None] = {}
    for number, section, sentence in numbered_sentences(parts):
        for mention in labeller.mentions(sentence):
            labels = [label for label, finding in stands_for.items() if finding == mention.finding]
            label = labels[0] if len(labels) == 1 and labels[0] in probabilities else None
            probability = None if label is None else probabilities[label]
            found[_row(mention, labeller, section, number, sentence, label, probability)] = None
    return tuple(found)


def numbered_sentences(parts: Iterable[tuple[str, str]]) -> Iterator[tuple[int, str, str]]:
    """Yield (number from 1, section, sentence) of each sentence with a letter; the number of a list is none."""
    number = 0
    for section, text in parts:
        for start, end in sentence_spans(text):
            sentence = " ".join(text[start:end].split())
            if any(map(str.isalpha, sentence)):
                number += 1
                yield number, section, sentence


def _row(
    mention: Mention,
    labeller: Labeller,
    section: str,
    number: int,
    sentence: str,
    label: str | None,
    probability: float | None,
) -> StatedFinding:
    places = labeller.vocabulary.named
    return StatedFinding(
        finding=mention.finding,
        status=mention.status,
        sides=tuple(side for side in places["sides"] if side in mention.sides),
        sites=tuple(zone for zone in places["zones"] if zone in mention.zones),
        severities=mention.severities,
        section=section or None,
        sentence=number,
        text=sentence,
        label=label,
        probability=probability,
        snomed=labeller.vocabulary.code("snomed", mention.finding, mention.text),
        radlex=labeller.vocabulary.code("radlex", mention.finding, mention.text),
    )
