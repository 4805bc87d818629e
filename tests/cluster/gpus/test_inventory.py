"""What the driver tells of GPUs, and how operators name them."""

import importlib
import importlib.util
import os
import sys
import threading

import pytest

from app.cluster.gpus.driver import Driver, Silent
from app.cluster.gpus.inventory import Gpu, Inventory, Memory, UnknownGpu, pinned
from tests.support.nvml import FAKE, GIB, IDLE, TOTAL, FakeGpus


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


def test_an_empty_name_is_no_gpu_even_where_there_is_only_one(gpus: FakeGpus) -> None:
    gpus.are([{"uuid": "GPU-1", "total": TOTAL, "used": IDLE}])
    for inventory in (Inventory.here(), Inventory(())):
        with pytest.raises(UnknownGpu, match="named by its index or its UUID"):
            inventory.find("")


def test_a_gpu_is_told_with_its_model_and_its_memory(gpus: FakeGpus) -> None:
    first = Inventory.here().find("0")
    assert (first.model, first.memory_bytes) == ("Fake H100", TOTAL)


def test_a_gpu_that_is_lost_leaves_the_others_usable(gpus: FakeGpus) -> None:
    gpus.are([{"uuid": f"GPU-{n}", "total": TOTAL, "used": IDLE, "lost": n == 1} for n in range(3)])
    inventory = Inventory.here()
    assert inventory.gpus == (Gpu("GPU-0", 0), Gpu("GPU-2", 2))
    with pytest.raises(UnknownGpu, match=r"There is no GPU 1 here; there are 0, 2\."):
        inventory.find("1")


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
    assert inventory.find("03") == inventory.find("3"), "else it could be leased twice"
    assert inventory.memory(inventory.find("3")) is None


# --- the driver -------------------------------------------------------------------------------------------------------


class Nvml:
    NVMLError = ZeroDivisionError


def test_a_question_that_blocks_holds_nobody_up_and_no_second_one_is_asked_meanwhile() -> None:
    driver, blocks = Driver(Nvml, answer_s=0.05), threading.Event()
    asked: list[object] = []
    with pytest.raises(Silent, match=r"no answer within 0\.05 s"):
        driver.ask(lambda nvml: blocks.wait(30))
    with pytest.raises(Silent, match="an earlier question is still unanswered"):
        driver.ask(asked.append)
    assert asked == []
    blocks.set()
    (stuck,) = (each for each in threading.enumerate() if each.name == "nvml")
    stuck.join(5)
    assert driver.ask(lambda nvml: nvml) is Nvml


def test_an_error_of_nvml_is_silence_and_any_other_is_a_fault_of_ours() -> None:
    driver = Driver(Nvml)
    with pytest.raises(Silent, match="division by zero"):
        driver.ask(lambda nvml: 1 / 0)
    with pytest.raises(KeyError):
        driver.ask(lambda nvml: os.environ["NOBODY_SETS_THIS"])


def test_a_gpu_that_hangs_does_not_tell(gpus: FakeGpus) -> None:
    inventory = Inventory(Inventory.here().gpus, Driver(importlib.import_module("pynvml"), answer_s=0.05))
    gpus.are([{"uuid": uuid, "total": TOTAL, "used": IDLE, "hangs_s": 1} for uuid in gpus.uuids])
    assert inventory.memory(inventory.find("0")) is None


def test_the_fake_has_nothing_that_the_real_binding_lacks() -> None:
    real = importlib.import_module("pynvml")
    spec = importlib.util.spec_from_file_location("fake_pynvml", FAKE / "pynvml.py")
    assert spec is not None
    assert spec.loader is not None
    fake = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = fake  # dataclasses look there
    try:
        spec.loader.exec_module(fake)
    finally:
        del sys.modules[spec.name]
    names = [name for name in vars(fake) if name.lower().startswith("nvml")]
    assert len(names) > 10
    assert [name for name in names if not hasattr(real, name)] == []
    for name in names:
        if name.startswith("NVMLError_"):
            assert issubclass(getattr(real, name), real.NVMLError)
            assert str(getattr(fake, name)()) == str(getattr(real, name)())
    assert {"total", "used"} <= {name for name, _ in real.c_nvmlMemory_t._fields_}
    assert {"pid", "usedGpuMemory"} <= {name for name, _ in real.c_nvmlProcessInfo_v3_t._fields_}
