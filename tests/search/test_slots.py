"""Which worker gets which GPUs and how many CPU threads."""

import pytest

from lit_tfm.errors import UserError
from lit_tfm.search.slots import slots, threads, visible_devices


@pytest.mark.parametrize(
    ("workers", "devices", "gpus_per_trial", "trials_per_gpu", "expected"),
    [
        (2, [], 1, 1, [None, None]),  # no GPU: nothing to assign
        (4, ["0", "1", "2", "3"], 1, 1, ["0", "1", "2", "3"]),
        (2, ["0", "1", "2", "3"], 2, 1, ["0,1", "2,3"]),
        (2, ["0", "1", "2", "3", "4"], 2, 1, ["0,1", "2,3"]),  # one is left over
        (4, ["0", "1"], 1, 2, ["0", "1", "0", "1"]),  # spread before shared
        (3, ["0", "1"], 1, 2, ["0", "1", "0"]),
        (4, ["0", "1", "2", "3"], 2, 2, ["0,1", "2,3", "0,1", "2,3"]),
        (2, ["GPU-ab", "GPU-cd"], 1, 1, ["GPU-ab", "GPU-cd"]),
        (2, ["0"], 0, 1, ["", ""]),  # trials on the CPU of a machine with GPUs
    ],
)
def test_assignment(workers, devices, gpus_per_trial, trials_per_gpu, expected) -> None:
    assert slots(workers, devices, gpus_per_trial, trials_per_gpu) == expected


def test_more_workers_than_places_are_refused_with_what_to_type() -> None:
    with pytest.raises(UserError, match=r"workers=5: 4 GPUs have room for 2 trials .* type workers=2 or a larger"):
        slots(5, ["0", "1", "2", "3"], 2, 1)
    with pytest.raises(UserError, match="room for 0 trials"):
        slots(1, ["0"], 2, 1)


def test_devices_keep_the_names_the_environment_gives_them() -> None:
    assert visible_devices(2, None) == ["0", "1"]
    assert visible_devices(2, "4,6") == ["4", "6"]
    assert visible_devices(0, "") == []


def test_threads_are_a_share_of_the_cores_and_at_most_what_is_asked() -> None:
    assert threads(2, cores=8) == 4
    assert threads(3, cores=2) == 1
    assert threads(1, cores=8, asked="2") == 2
    assert threads(4, cores=8, asked="16") == 2
    assert threads(1, cores=8, asked="nonsense") == 8
    assert threads(1) >= 1
