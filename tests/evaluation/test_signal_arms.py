"""The arms that swap and withhold a signal change it, and nothing else."""

import numpy as np
import pytest

from tests.signals import write_beats
from vlm.data.case import CaseSpec
from vlm.data.dataset import CaseDataset
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.evaluation.arms import ARMS, ArmCases, all_arms


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> CaseDataset:
    """All cases of a table of beats."""
    cohort = load_cohort(write_beats(tmp_path_factory.mktemp("beats")))
    return CaseDataset(cohort.dataset, CaseSpec.fit(cohort, ImageSpec(32), 4), cohort.sections)


def arm(name: str, cases: CaseDataset) -> ArmCases:
    """One arm of these cases."""
    return ArmCases(next(one for one in all_arms(cases) if one.name == name), cases)


def test_cases_with_signals_have_two_arms_more(cases: CaseDataset) -> None:
    """Swapped and withheld."""
    assert [one.name for one in all_arms(cases)] == [one.name for one in ARMS] + ["signal_swapped", "signal_withheld"]


def test_a_swapped_signal_is_another_patients_and_all_else_is_the_cases_own(cases: CaseDataset) -> None:
    """Each case is a donor once."""
    swapped = arm("signal_swapped", cases)
    own = [cases[index]["signal"].numpy().tobytes() for index in range(len(cases))]
    shown = [swapped[index] for index in range(len(cases))]
    given = [example["signal"].numpy().tobytes() for example in shown]
    assert sorted(own) == sorted(given) and all(a != b for a, b in zip(own, given, strict=True))
    for index, example in enumerate(shown):
        assert example["report"] == cases[index]["report"] and np.array_equal(example["vitals"], cases[index]["vitals"])
    assert swapped.changed.all() and not swapped.undefined and len(set(swapped.shown)) == len(cases)


def test_a_withheld_signal_is_missing_and_other_arms_keep_it(cases: CaseDataset) -> None:
    """Withheld vitals leave the signal as it is."""
    assert arm("signal_withheld", cases)[0]["signal"].isnan().all()
    assert arm("vitals_withheld", cases)[0]["signal"].equal(cases[0]["signal"])
    assert arm("vitals_withheld", cases)[0]["vitals"].isnan().all()
