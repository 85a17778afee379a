"""A run's folder: what is found in it, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrag_retriever.config import CONFIG_NAME
from qrag_retriever.training.run_folder import RunFolder


def test_an_empty_folder_is_made_and_locked(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run")
    found = folder.take(resume=False)
    assert (found.error, found.report, found.checkpoint) == (None, None, None)
    other = RunFolder(folder.path).take(resume=True)
    assert isinstance(other.error, FileExistsError)
    assert "another run is at work" in str(other.error)
    folder.release()
    again = RunFolder(folder.path)
    assert again.take(resume=False).error is None
    again.release()


def test_what_is_no_model_is_not_replaced(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.model.mkdir()
    (folder.model / "mine.txt").write_text("mine", encoding="utf-8")
    error = folder.take(resume=True).error
    folder.release()
    assert isinstance(error, FileExistsError)
    assert "is no model; move it away" in str(error)


@pytest.mark.parametrize("name", ["file", "file/run", "nul\0"])
def test_what_can_be_no_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    error = RunFolder(tmp_path / name).take(resume=False).error
    assert isinstance(error, OSError)
    assert f"run.output cannot be the folder {str(tmp_path / name)!r}: " in str(error)


@pytest.mark.parametrize("name", ["report.json", "log.jsonl", "model", "checkpoints/00000003"])
def test_what_is_there_is_not_touched_unless_it_is_to_be_gone_on_with(tmp_path: Path, name: str) -> None:
    there = tmp_path / name
    if ".json" in name:
        there.write_text("mine", encoding="utf-8")
    else:
        there.mkdir(parents=True)
    folder = RunFolder(tmp_path)
    error = folder.take(resume=False).error
    folder.release()
    assert isinstance(error, FileExistsError)
    assert "go on with --resume" in str(error)
    assert there.exists()


def test_a_model_alone_is_no_run_to_go_on_with(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / CONFIG_NAME).write_text("{}", encoding="utf-8")
    folder = RunFolder(tmp_path)
    error = folder.take(resume=True).error
    folder.release()
    assert isinstance(error, FileExistsError)
    assert "holds a model, but no run to go on with" in str(error)
    # A run that was killed before its first checkpoint leaves its log.
    (tmp_path / "log.jsonl").write_text("", encoding="utf-8")
    assert folder.take(resume=True).error is None
    folder.release()


def test_a_file_in_place_of_the_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine", encoding="utf-8")
    folder = RunFolder(tmp_path)
    error = folder.take(resume=True).error
    folder.release()
    assert "model exists and is no model; move it away" in str(error)


def test_the_report_of_a_run_without_a_model_is_of_a_run_thrown_away(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_report({"recipe": {}, "best": None})
    found = folder.take(resume=True)
    folder.release()
    assert (found.error, found.report) == (None, None)
    assert not folder.report.exists()


def test_a_finished_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    put_model(folder)
    folder.write_report({"recipe": {"run": {"a": 1}}, "best": None})
    found = folder.take(resume=True)
    folder.release()
    assert found.report == {"recipe": {"run": {"a": 1}}, "best": None}


def put_model(folder: RunFolder) -> None:
    folder.model.mkdir()
    (folder.model / "qrag_config.json").write_text("{}", encoding="utf-8")


REPORTS = (
    *("", "[]", "{}", '{"recipe": {}', "7", '{"recipe": {}}', '{"recipe": {}, "best": null}'),
    *(
        '{"recipe": null, "best": null}',
        '{"recipe": {"run": {}}, "best": 5}',
        '{"recipe": {"run": {}}, "best": {"step": 1}}',
    ),
)


@pytest.mark.parametrize("text", REPORTS)
def test_a_damaged_report_is_named(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    put_model(folder)
    folder.report.write_text(text, encoding="utf-8")
    error = folder.take(resume=True).error
    folder.release()
    assert isinstance(error, ValueError)
    assert "report.json is damaged" in str(error)
