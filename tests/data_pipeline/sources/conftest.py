"""Parts small enough for small files, and no hub."""

import pytest

from data_pipeline.sources import lines


@pytest.fixture
def small_parts(monkeypatch):
    """Files are cut into parts of some hundred bytes."""
    monkeypatch.setattr(lines, "PART_BYTES", 200)
    monkeypatch.setattr(lines, "BLOCK", 90)


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """No hub, and the library's own files away from the user's."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
