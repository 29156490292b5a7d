"""Text comes from wherever the recipe points, in one order; what is not there is told."""

from __future__ import annotations

import json

import numpy as np
import pytest

from baleen.chat.tokenizer import Tokenizer
from baleen.training.text import CorpusError, documents, rows, split, tokenise

TEXTS = [f"Document {i} tells of {i * 7} whales.\nIts second line." for i in range(25)]


def test_a_txt_file_is_cut_at_empty_lines(tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(TEXTS))
    assert documents(str(file), 10**6) == TEXTS


def test_a_jsonl_file_gives_its_texts(tmp_path):
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n\n" for text in TEXTS))
    assert documents(str(file), 10**6) == TEXTS


def test_a_parquet_file_gives_its_text_column(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"id": list(range(25)), "text": TEXTS}), tmp_path / "corpus.parquet")
    assert documents(str(tmp_path / "corpus.parquet"), 10**6) == TEXTS


def test_a_folder_gives_its_text_files_in_one_order(tmp_path):
    (tmp_path / "inner").mkdir()
    for place, text in enumerate(TEXTS):
        (tmp_path / ("inner" if place % 2 else ".") / f"{place:02d}.txt").write_text(text)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    found = documents(str(tmp_path), 10**6)
    assert sorted(found) == sorted(TEXTS)
    assert found == documents(str(tmp_path), 10**6)


def test_the_default_is_the_standard_library_and_needs_no_download():
    found = documents(None, 300_000)
    assert found == documents(None, 300_000)
    assert 300_000 <= sum(len(text.encode()) for text in found) < 2_000_000
    assert any("import " in text for text in found)


def test_reading_stops_at_the_asked_size(tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(TEXTS * 10))
    assert 20 <= len(documents(str(file), 1200)) < 40


@pytest.mark.parametrize("name", ["missing.txt", "missing.jsonl", "missing.parquet", "missing"])
def test_a_missing_path_is_told_with_what_can_be_given(name, tmp_path):
    with pytest.raises(CorpusError, match=r"does not exist; give a folder, \.txt, \.jsonl, \.parquet"):
        documents(str(tmp_path / name), 1000)


def test_too_few_documents_are_told(tmp_path):
    (tmp_path / "one.txt").write_text("a single document")
    with pytest.raises(CorpusError, match="holds 1 documents; at least 20"):
        documents(str(tmp_path), 1000)


def test_every_twentieth_document_is_held_out_and_none_is_lost():
    training, validation = split(TEXTS)
    assert validation == [TEXTS[0], TEXTS[20]]
    assert sorted(training + validation) == sorted(TEXTS)


def test_documents_stand_end_to_end_each_opened_by_the_first_token():
    tokenizer = Tokenizer.train(TEXTS, 400)
    stream = tokenise(TEXTS[:3], tokenizer)
    starts = np.flatnonzero(stream == tokenizer.bos_id).tolist()
    assert len(starts) == 3
    pieces = [stream[a + 1 : b].tolist() for a, b in zip(starts, [*starts[1:], len(stream)], strict=True)]
    assert [tokenizer.decode(piece) for piece in pieces] == TEXTS[:3]


def test_rows_are_stretches_of_the_stream_and_the_same_for_the_same_seed():
    stream = np.arange(500, dtype=np.uint32)
    drawn = rows(stream, 6, 40, seed=3)
    assert drawn.shape == (6, 40)
    assert (np.diff(drawn.astype(int), axis=1) == 1).all()
    assert np.array_equal(drawn, rows(stream, 6, 40, seed=3))
    assert not np.array_equal(drawn, rows(stream, 6, 40, seed=4))


def test_a_stream_shorter_than_a_row_is_told():
    with pytest.raises(CorpusError, match="40 tokens, fewer than one sequence of 40"):
        rows(np.arange(40, dtype=np.uint32), 1, 40, seed=0)
