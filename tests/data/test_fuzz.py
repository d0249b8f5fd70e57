"""Mutated files of every format load as valid episodes or are refused in one sentence; and the counts of the rest."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voc_rl.benchmarks.fuzz_corpus import Case, read_corpus, write_corpus
from voc_rl.benchmarks.fuzz_mutations import mutated
from voc_rl.benchmarks.fuzz_oracle import what_is_wrong
from voc_rl.benchmarks.fuzz_readers import (
    SAMPLES,
    formats,
    fuzz_readers,
    read_mutated,
    write_files,
)
from voc_rl.data import Episodes, load_dataset

CORPUS = Path(__file__).parent / "corpus.zip"


def test_mutations_of_every_reader() -> None:
    """`python -m voc_rl.benchmarks.trust --mutations 10000` is the long form."""
    report = fuzz_readers(400, seed=1)
    assert report.failures == []
    assert report.mutations == report.loaded + report.refused == 400
    assert report.loaded > 40  # damage in what nobody needs, or in numbers that may be any
    assert report.refused > 40


@pytest.mark.parametrize("name", formats())
def test_unharmed_samples_load(name: str, tmp_path: Path) -> None:
    write_files(tmp_path, SAMPLES[name]())
    assert read_mutated(tmp_path, name) == ("loaded", "")


@pytest.mark.parametrize("name", formats())
def test_mutations_repeat_and_change_something(name: str) -> None:
    files = SAMPLES[name]()
    first = [mutated(files, np.random.default_rng([3, i])) for i in range(20)]
    again = [mutated(files, np.random.default_rng([3, i])) for i in range(20)]
    raw = [a == b for a, b in zip(first, again, strict=True)]
    assert sum(raw) >= 10  # HDF5 stamps the time into what it writes anew
    assert sum(files != changed for changed in first) >= 15


def ends_at_three(connection: Any, seed: int) -> None:
    connection.send("ready")
    while True:
        index = connection.recv()
        if index == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        connection.send(("loaded", "") if index % 2 else ("silent_misreads", "odd"))


def sleeps_at_one(connection: Any, seed: int) -> None:
    connection.send("ready")
    while True:
        if connection.recv() == 1:
            time.sleep(600)
        connection.send(("refused", ""))


def test_crashes_and_misreads_are_counted_and_the_rest_goes_on() -> None:
    report = fuzz_readers(7, work=ends_at_three)
    assert (report.mutations, report.crashes, report.loaded, report.silent_misreads) == (7, 1, 2, 4)
    crash = next(failure for failure in report.failures if failure.startswith("crashes"))
    assert f"mutation 3: the process ended with code -{int(signal.SIGSEGV)}" in crash


def test_hangs_are_counted() -> None:
    report = fuzz_readers(3, timeout=0.5, work=sleeps_at_one)
    assert (report.mutations, report.hangs, report.refused) == (3, 1, 2)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("step_type", 2, "step types"),
        ("reward", np.nan, "reward"),
        ("action", 2.0, "actions outside"),
        ("discount", -1.0, "discounts outside"),
    ],
)
def test_invalid_episodes_are_seen(tmp_path: Path, column: str, value: float, said: str) -> None:
    write_files(tmp_path, SAMPLES["voc"]())
    dataset = Episodes.open(tmp_path)
    frames = dataset.frames(np.arange(len(dataset)))
    assert what_is_wrong(dataset, frames, tmp_path, "voc") == ""
    assert "frames" in what_is_wrong(dataset, frames[1:], tmp_path, "voc")
    getattr(dataset, column)[2] = value
    assert said in what_is_wrong(dataset, frames, tmp_path, "voc")


@pytest.mark.parametrize("name", formats())
def test_rows_that_are_not_the_files_are_seen(tmp_path: Path, name: str) -> None:
    """Valid episodes whose rewards belong to other rows: what two well-known loaders make of such files."""
    write_files(tmp_path, SAMPLES[name]())
    dataset = load_dataset(tmp_path / "walker2d.hdf5" if name == "d4rl" else tmp_path)
    frames = dataset.frames(np.arange(len(dataset))) if dataset.has_frames else None
    assert what_is_wrong(dataset, frames, tmp_path, name) == ""
    dataset.reward[:] = np.roll(dataset.reward, 1)
    wrong = what_is_wrong(dataset, frames, tmp_path, name)
    assert "reward differ" in wrong or "in no file" in wrong
    dataset.reward[:] = np.roll(dataset.reward, -1)
    if frames is not None:
        assert what_is_wrong(dataset, frames[::-1], tmp_path, name) != ""


@pytest.mark.parametrize("case", read_corpus(CORPUS), ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_saved_files(case: Case, tmp_path: Path) -> None:
    """The same bytes for every version of the readers and their libraries."""
    if case.format not in formats():
        pytest.skip("minari is not installed")
    write_files(tmp_path, case.files)
    outcome, said = read_mutated(tmp_path, case.format)
    assert outcome == case.outcome, said


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_corpus_holds_what_it_was_made_of(tmp_path: Path) -> None:
    count = write_corpus(tmp_path / "corpus.zip", seed=5, each=2, tries=30)
    cases = list(read_corpus(tmp_path / "corpus.zip"))
    assert 2 * len(formats()) <= len(cases) == count <= 3 * len(formats())  # checksums leave npz few reasons
    assert {case.format for case in cases} == set(formats())
    assert cases[0].files == SAMPLES["voc"]()
