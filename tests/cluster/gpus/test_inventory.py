"""What the driver tells of GPUs, and how operators name them."""

import pytest

from app.cluster.gpus.inventory import Gpu, Inventory, Memory, UnknownGpu, pinned
from tests.support.nvml import GIB, IDLE, TOTAL, FakeGpus


def test_a_gpu_is_found_by_its_index_its_uuid_or_the_beginning_of_it(gpus: FakeGpus) -> None:
    inventory = Inventory.here()
    second = Gpu(gpus.uuids[1], 1)
    assert inventory.gpus == (Gpu(gpus.uuids[0], 0), second)
    assert [inventory.find(name) for name in ("1", gpus.uuids[1], "GPU-00000001")] == [second] * 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("7", "There is no GPU 7 here; there are 0 to 1."),
        ("GPU-ff", "There is no GPU GPU-ff here; there are 0 to 1."),
        ("GPU-0000", "GPU-0000 is the beginning of 2 GPUs' names."),
        ("MIG-1", "There is no GPU MIG-1 here; there are 0 to 1."),
        ("x", "There is no GPU x here; there are 0 to 1."),
    ],
)
def test_a_name_that_means_no_gpu_or_several_is_refused_in_a_sentence(gpus: FakeGpus, name: str, said: str) -> None:
    with pytest.raises(UnknownGpu) as raised:
        Inventory.here().find(name)
    assert str(raised.value) == said


def test_one_gpu_under_two_names_is_one(gpus: FakeGpus) -> None:
    with pytest.raises(UnknownGpu, match="GPU 0 is named twice"):
        Inventory.here().find_all(["0", gpus.uuids[0]])


def test_a_slice_is_found_by_its_uuid_only(gpus: FakeGpus) -> None:
    gpus.are([{"uuid": "GPU-1", "total": TOTAL, "used": IDLE}, {"uuid": "MIG-9", "total": TOTAL // 4, "used": 1}])
    inventory = Inventory.here()
    found = inventory.find("MIG-9")
    assert (found, found.shown, len(inventory.gpus)) == (Gpu("MIG-9", None), "GPU MIG-9", 1)
    assert inventory.memory(found) == Memory(1, {}), "slices do not list their processes"
    with pytest.raises(UnknownGpu, match="there is only GPU 0"):
        inventory.find("1")


def test_engines_are_pinned_by_numbers_in_the_order_of_the_bus_and_slices_by_uuid() -> None:
    env = pinned((Gpu("GPU-a", 3), Gpu("MIG-b", None)))
    assert env == {"CUDA_VISIBLE_DEVICES": "3,MIG-b", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_memory_is_told_with_those_who_hold_it(gpus: FakeGpus) -> None:
    inventory = Inventory.here()
    first = inventory.find("0")
    assert inventory.memory(first) == Memory(IDLE, {})
    with gpus.occupied(0, pid=1, bytes_=3 * GIB):
        assert inventory.memory(first) == Memory(IDLE + 3 * GIB, {1: 3 * GIB})
    assert inventory.memory(first) == Memory(IDLE, {})


def test_a_gpu_that_does_not_tell_is_no_error(gpus: FakeGpus) -> None:
    inventory = Inventory.here()
    gpus.are([{"uuid": uuid, "total": TOTAL, "used": IDLE, "silent": True} for uuid in gpus.uuids])
    assert inventory.memory(inventory.find("0")) is None


def test_without_a_driver_gpus_are_taken_by_the_names_they_are_given() -> None:
    """With the real binding, on a machine that has none; where there is a driver it knows what is there."""
    inventory = Inventory.here()
    if inventory.gpus:
        pytest.skip("this machine has GPUs")
    assert "NVML" in inventory.lacking
    assert inventory.find_all(["3", "GPU-a"]) == (Gpu("3", 3), Gpu("GPU-a", None))
    assert inventory.memory(inventory.find("3")) is None
