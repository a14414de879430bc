"""Long work is safe: what is not a number is not kept, and a full memory is told with a way out."""

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cifar_deploy.data.dataset import Dataset
from cifar_deploy.errors import UserError
from cifar_deploy.train import checkpoint, find_lr, loop, memory
from cifar_deploy.train.loop import Job, Trainer

MakeJob = Callable[..., Job]


class Poisoned(Trainer):
    """A run in which a weight is no number any more before step number 8."""

    def step(self) -> None:
        if self.state.step == 7:
            with torch.no_grad():
                self.network.get_parameter("0.weight")[0, 0, 0, 0] = torch.nan
        super().step()


def test_the_step_is_named_at_which_the_loss_is_no_number(make_job: MakeJob, recorder: Any) -> None:
    job = make_job()
    with pytest.raises(UserError) as caught:
        Poisoned(job).run(recorder)
    said = str(caught.value).splitlines()
    assert said[0].startswith("the loss is not a number at step 8: the training diverged; lower")
    assert said[1:] == ["There is no checkpoint of this run yet."]
    assert not job.folder.checkpoint.exists()


def test_a_muon_run_that_diverged_has_two_rates_to_lower(make_job: MakeJob, recorder: Any) -> None:
    job = make_job("optimizer.name=muon", "optimizer.muon_lr=0.25")
    with pytest.raises(UserError, match=r"lower --lr .*, or optimizer\.muon_lr, .* \(0\.25\)"):
        Poisoned(job).run(recorder)


def test_a_checkpoint_that_is_no_number_is_not_written(
    make_job: MakeJob, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    job = make_job()
    with pytest.raises(UserError) as caught:
        Poisoned(job).run(recorder)
    said = str(caught.value).splitlines()
    assert len(said) == 2
    assert "step 8" in said[0]
    assert said[1].startswith("The last good checkpoint is of step 7; go on from its weights with")
    assert said[1].endswith(f"--init {job.folder.checkpoint}")
    assert checkpoint.read(job.folder)[1]["step"] == 7
    # What was said is a way out.
    again = dataclasses.replace(job, init=str(job.folder.checkpoint))
    assert Trainer(again).run(recorder)["test_accuracy"] is not None


@pytest.mark.parametrize("why", ["Ctrl-C", "a checkpoint is due"])
def test_the_step_is_named_also_where_a_checkpoint_would_be_written_later(
    make_job: MakeJob, recorder: Any, monkeypatch: pytest.MonkeyPatch, ctrl_c: Any, why: str
) -> None:
    class Saving(Poisoned):
        def step(self) -> None:
            super().step()
            if self.state.step == 10 and why == "Ctrl-C":
                ctrl_c()
            elif self.state.step == 10:
                monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

    monkeypatch.setitem(loop.LOOK_SECONDS, "cpu", 1e9)  # nobody has looked by then
    job = make_job()
    with pytest.raises(UserError, match=r"^the loss is not a number at step 8: the training div"):
        Saving(job).run(recorder)
    assert not job.folder.checkpoint.exists()


def test_weights_that_the_last_step_spoilt_are_not_written(
    make_job: MakeJob, recorder: Any
) -> None:
    class Late(Trainer):
        def step(self) -> None:
            super().step()
            if self.state.step == self.steps:
                with torch.no_grad():
                    self.network.get_parameter("0.bias").fill_(torch.inf)

    job = make_job()
    with pytest.raises(UserError, match=r"network\.0\.bias is not finite after step 18"):
        Late(job).run(recorder)
    assert {path.name for path in job.folder.path.iterdir()} == {"log.jsonl"}


# --- memory -------------------------------------------------------------------------------------


class Small(Trainer):
    """On a device whose memory takes 40 images."""

    room = 40

    def step(self) -> None:
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB\nand more")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> type[Small]:
    """A run whose trials meet that device, too."""
    attempt = memory.attempt

    def attempted(trainer: Trainer, size: int) -> None:
        if size > Small.room:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB")
        attempt(trainer, size)

    monkeypatch.setattr(memory, "attempt", attempted)
    return Small


def test_a_full_memory_names_the_batch_that_fits(
    make_job: MakeJob, recorder: Any, small: type[Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as caught:
        small(make_job()).run(recorder)
    said = "out of memory on cpu with a batch of 100; one of 40 would fit: --batch-size 40 "
    assert str(caught.value).startswith(said)
    monkeypatch.setattr(small, "room", 0)
    with pytest.raises(UserError, match=r"not even one image fits; .* 2 GiB$"):
        small(make_job()).run(recorder)
    monkeypatch.setattr(small, "room", 100)  # something else took the memory
    with pytest.raises(UserError, match="2 GiB; free some, or use another device"):
        small(make_job()).run(recorder)


def test_other_words_for_a_full_memory_are_known(
    make_job: MakeJob, recorder: Any, small: type[Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "FIND was unable to find an engine to execute this computation"

    def convolve(*_: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(small, "step", convolve)
    with pytest.raises(UserError, match="one of 40 would fit: --batch-size 40 "):
        small(make_job()).run(recorder)
    said = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000 bytes"
    with pytest.raises(UserError, match="one of 40 would fit: --batch-size 40 "):
        small(make_job()).run(recorder)
    said = "shapes do not match"  # a fault of ours stays one
    with pytest.raises(RuntimeError, match="shapes do not match"):
        small(make_job()).run(recorder)


def test_the_learning_rate_finder_tells_a_full_memory(
    make_job: MakeJob, small: type[Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find_lr, "Trainer", small)
    with pytest.raises(UserError, match="one of 40 would fit: --batch-size 40 "):
        find_lr.find(make_job(), 1e-3, 1.0, 20)


@pytest.mark.gpu
def test_a_gpus_memory_is_told(make_job: MakeJob, recorder: Any, few: Dataset) -> None:
    """A share of the memory is taken away, so that a large batch does not fit into the rest."""
    many = dataclasses.replace(
        few,
        train=type(few.train)(
            few.train.images.repeat(20, axis=0), few.train.labels.repeat(20, axis=0)
        ),
    )
    job = make_job("train.batch_size=12000", network="custom_resnet", dataset=many)
    job = dataclasses.replace(job, device=torch.device("cuda", 0))
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / whole)
    try:
        with pytest.raises(UserError, match=r"one of \d+ would fit: --batch-size \d+") as caught:
            Trainer(job).run(recorder)
        size = str(caught.value).split("--batch-size ")[1].split()[0]
        del caught  # which holds on to the first run
        gc.collect()
        torch.cuda.empty_cache()
        fitting = make_job(
            f"train.batch_size={size}", "train.epochs=1", network="custom_resnet", dataset=many
        )
        Trainer(dataclasses.replace(fitting, device=job.device)).run(recorder)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
