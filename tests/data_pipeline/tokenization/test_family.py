"""What every kind of tokenizer keeps to, however it came about."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from configs.errors import DataError, RecipeError
from data_pipeline.cleaning import normalise
from data_pipeline.example import WORD_START
from data_pipeline.parallel import Workers
from data_pipeline.tokenization import (
    BPETokenizer,
    Encoder,
    ModelFileTokenizer,
    PretrainedTokenizer,
    UnigramTokenizer,
    tokenizer_record,
    tokenizer_sha256,
)
from data_pipeline.tokenization.lines import lines, sample
from tests.data_pipeline.tokenization.kinds import (
    KINDS,
    LLAMA,
    config_of,
    documents,
    texts,
    train_model,
)

LOSSLESS = ("bpe", "roberta", "unigram", "llama")
TEXTS = st.text(st.sampled_from("ab the.,(_1 世界é北京大学\n\t☃-'😀"), min_size=1, max_size=40)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def backend_of(folder):
    """The tokenizer as it is, but for its post-processor: what offsets are compared with."""
    values = json.loads((folder / "tokenizer.json").read_text())
    backend = Tokenizer.from_str(json.dumps(values | {"post_processor": None}))
    backend.encode_special_tokens = True
    return backend


def digest_elsewhere(task):
    """In another process, where the libraries' hash tables are keyed anew; with other batches."""
    kind, place = task
    folder = place / "again"
    config_of(kind, place).build(folder, Path, lambda names: (text for text in documents()))
    return tokenizer_sha256(folder)


@pytest.mark.processes
def test_made_twice_it_is_the_same(made, tmp_path):
    kinds = [kind for kind in KINDS if kind != "pretrained"]
    tasks = [(kind, tmp_path / kind) for kind in kinds]
    with Workers(2) as workers:
        found = list(workers.map(digest_elsewhere, tasks))
    assert found == [tokenizer_sha256(made(kind)) for kind in kinds]


@pytest.mark.parametrize("model", [None, "bert", "roberta", "xlm-roberta", "llama", "gpt2"])
def test_transformers_loads_it_beside_any_model(made, tmp_path, kind, model):
    """An export holds a config.json that names a model with a tokenizer class of its own."""
    for path in made(kind).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if model:
        values = {"model_type": model, "vocab_size": 500, "bos_token_id": 1, "eos_token_id": 2}
        (tmp_path / "config.json").write_text(json.dumps(values))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer_sha256(loaded.backend_tokenizer) == tokenizer_sha256(made(kind))
    record = tokenizer_record(made(kind))
    for role, number in record.special.items():
        assert getattr(loaded, f"{role}_token_id") == number
    text = documents()[2]
    ids = Encoder(made(kind)).encode([text]).tokens.tolist()
    assert loaded(text, add_special_tokens=False)["input_ids"] == ids
    ends = record.suffix if record.special.get("mask") else []
    assert loaded(text)["input_ids"] == [*record.prefix, *ids, *ends]


@settings(max_examples=60, deadline=None)
@given(text=TEXTS.map(normalise).filter(bool))
@example(text="def f(x):\n\treturn  '😀👩‍👩‍👧'\n\n  مرحبا नमस्ते 北京 é ½")
def test_what_is_lossless_reads_back(made, text):
    for kind in LOSSLESS:
        ids = Encoder(made(kind)).encode([text]).tokens.tolist()
        assert backend_of(made(kind)).decode(ids, skip_special_tokens=False) == text, kind


CJK = Regex("[\u4e00-\u9fff]")


def expected_starts(text, offsets):
    """By brute force: BERT's words, CJK characters, and space that is more than a blank."""
    isolating = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(CJK, "isolated")]
    )
    words = [span for _, span in isolating.pre_tokenize_str(text)]
    places = [(first - (first > 0 and text[first - 1] == " "), first) for first, _ in words]
    ends = [0, *[end for _, end in words]]
    for end, (mark, _) in zip(ends, [*places, (len(text), len(text))], strict=True):
        if end < mark:
            places.append((end, end))
    starts = [False] * len(offsets)
    for mark, first in places:
        token = next((t for t, (begin, _) in enumerate(offsets) if begin >= mark), None)
        if token is None:
            continue
        earlier = [end for _, end in offsets[:token]]
        if max(earlier, default=0) <= min(first, offsets[token][0]):
            starts[token] = True
    return starts


@settings(max_examples=60, deadline=None)
@given(text=TEXTS.map(normalise).filter(bool))
@example(text="the model, of 世界  (a)\n\n  wörld 3.14 北京大学 loss_scale  ☃☃ x")
def test_word_starts_are_exact(made, text):
    for kind in KINDS:
        encoded = Encoder(made(kind)).encode([text])
        encoding = backend_of(made(kind)).encode(text, add_special_tokens=False)
        assert encoded.tokens.tolist() == encoding.ids, kind
        found = (encoded.annotations & WORD_START).astype(bool).tolist()
        assert found == expected_starts(text, encoding.offsets), (kind, encoding.tokens)


def test_what_looks_special_in_a_text_is_text(made, kind):
    tokens = ["[MASK]", "[CLS]", "<mask>", "<s>", "</s>", "<pad>", "<|endoftext|>"]
    encoded = Encoder(made(kind)).encode([f"the {token} model{token}" for token in tokens])
    record = tokenizer_record(made(kind))
    assert record.special
    special = set(record.special.values()) - {record.special.get("unk")}
    assert special.isdisjoint(encoded.tokens.tolist())


def test_one_word_of_100k_characters(made, kind):
    for text in ("a" * 100_000, "北" * 100_000, "the model " + "-" * 100_000 + " of"):
        encoded = Encoder(made(kind)).encode([text])
        assert 0 < encoded.lengths[0] <= 3 * 100_000 + 10
        assert encoded.annotations[0] & WORD_START


def test_training_batches_do_not_matter(tmp_path):
    """The library takes texts one by one or in lists; it counts the same."""
    from tokenizers import models, trainers

    BPETokenizer(vocabulary_size=400, corpora=["x"]).build(tmp_path / "a", Path, texts)
    values = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    backend.train_from_iterator([documents()[:7], documents()[7:]], trainer)
    assert json.loads(backend.to_str())["model"]["vocab"] == values["model"]["vocab"]


@pytest.mark.parametrize("name", ["unigram", "folding", "llama"])
def test_ids_are_sentencepieces_own(made, name):
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(made(name) / "sentencepiece.model"))
    for text in lines(documents(60, seed=5)):
        assert Encoder(made(name)).encode([text]).tokens.tolist() == model.encode(text)


STYLES = {
    "albert": ("[CLS] [SEP]", {"cls", "sep", "pad", "mask", "unk"}),
    "xlm_roberta": ("<s> </s>", {"bos", "cls", "eos", "sep", "pad", "mask", "unk"}),
    "t5": (" </s>", {"eos", "pad", "unk"}),
    "llama": ("<s> ", {"bos", "eos", "unk"}),
}


@pytest.mark.parametrize("style", STYLES)
def test_styles_of_model_files(tmp_path, style):
    train_model(tmp_path / "a.model", model_type="unigram", vocab_size=200)
    config = ModelFileTokenizer(location=str(tmp_path / "a.model"), style=style, corpora=["x"])
    config.build(tmp_path / "t", Path, texts)
    record = tokenizer_record(tmp_path / "t")
    around, roles = STYLES[style]
    backend = backend_of(tmp_path / "t")
    shown = [" ".join(map(backend.id_to_token, ids)) for ids in (record.prefix, record.suffix)]
    assert shown == around.split(" ")
    assert set(record.special) == roles
    # What the file lacks is added behind it; what it has keeps its place.
    assert (record.special["unk"], record.special.get("bos", 1)) == (0, 1)
    assert record.vocabulary_size == 200 + len(
        {"albert": "CSPM", "xlm_roberta": "PM", "t5": "P", "llama": ""}[style]
    )


def test_a_bpe_file_with_symbols_of_its_users(tmp_path):
    train_model(tmp_path / "a.model", **LLAMA, user_defined_symbols=["<sep>", "loss"])
    config = ModelFileTokenizer(location=str(tmp_path / "a.model"), style="llama", corpora=["x"])
    config.build(tmp_path / "t", Path, texts)
    assert "loss" in backend_of(tmp_path / "t").encode("the loss").tokens


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_of_blanks_are_read_back(tmp_path, kind):
    """Code is indented: runs of blanks have pieces of their own, between which texts are cut."""
    code = ["def f(x):\n    if x:\n        return x  # yes\n    return 1"] * 20
    train_model(
        tmp_path / "a.model",
        **{**LLAMA, "model_type": kind},
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["▁▁▁▁", "  "],
    )
    config = ModelFileTokenizer(location=str(tmp_path / "a.model"), style="llama", corpora=["x"])
    config.build(tmp_path / "t", Path, lambda names: iter(code))
    encoded = Encoder(tmp_path / "t").encode(code[:1]).tokens.tolist()
    backend = backend_of(tmp_path / "t")
    assert "▁▁▁▁" in map(backend.id_to_token, encoded)
    assert backend.decode(encoded, skip_special_tokens=False) == code[0]


def test_files_that_do_not_work_are_named(tmp_path):
    def build(name, **values):
        if values:
            train_model(tmp_path / name, **values)
        config = ModelFileTokenizer(location=str(tmp_path / name), style="t5")
        config.build(tmp_path / "t", Path, texts)

    with pytest.raises(DataError, match=r"missing\.model: cannot be read"):
        build("missing.model")
    (tmp_path / "text.model").write_text("not a model at all")
    with pytest.raises(DataError, match=r"text\.model: not a \.model file"):
        build("text.model")
    (tmp_path / "empty.model").write_text("")
    with pytest.raises(DataError, match=r"empty\.model: holds no pieces"):
        build("empty.model")
    with pytest.raises(DataError, match="algorithm is number 4"):
        build("char.model", model_type="char", vocab_size=200)
    with pytest.raises(DataError, match="blanks behind words"):
        build("suffix.model", treat_whitespace_as_suffix=True, vocab_size=200)


def test_a_difference_from_sentencepiece_is_an_error(tmp_path):
    """Its normaliser keeps a blank before a joiner; the tokenizers library's drops both."""
    train_model(tmp_path / "a.model", model_type="unigram", vocab_size=200)
    config = ModelFileTokenizer(location=str(tmp_path / "a.model"), style="t5", corpora=["x"])
    with pytest.raises(DataError, match="otherwise than sentencepiece does"):
        config.build(tmp_path / "t", Path, lambda names: iter(["the\u00a0\u200dmodel"]))


def test_vocabularies_that_cannot_be_are_refused(tmp_path):
    nothing = {"corpora": ["x"]}
    for config in (BPETokenizer, UnigramTokenizer):
        with pytest.raises(DataError, match="x hold no text"):
            config(vocabulary_size=400, **nothing).build(tmp_path, Path, lambda names: iter([""]))
    with pytest.raises(RecipeError, match="vocabulary_size: 300 does not hold"):
        UnigramTokenizer(vocabulary_size=300, **nothing).build(tmp_path, Path, texts)
    with pytest.raises(ValueError, match="every line end <unk>"):
        UnigramTokenizer(vocabulary_size=300, byte_fallback=False, **nothing)


def slow(folder, name, **files):
    folder.mkdir()
    for file, content in files.items():
        (folder / file.replace("__", ".")).write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    return folder


def test_a_tokenizer_without_a_fast_form_is_converted(tmp_path):
    train_model(tmp_path / "a.model", model_type="unigram", vocab_size=200)
    content = (tmp_path / "a.model").read_bytes()
    place = slow(tmp_path / "slow", "BertGenerationTokenizer", spiece__model=content)
    PretrainedTokenizer(location=str(place)).build(tmp_path / "t", Path, texts)
    before, after = (AutoTokenizer.from_pretrained(str(p)) for p in (place, tmp_path / "t"))
    assert (before.is_fast, after.is_fast) == (False, True)
    for text in lines(documents(20)):
        assert before(text)["input_ids"] == after(text)["input_ids"]
    assert after.special_tokens_map == before.special_tokens_map


@pytest.mark.parametrize("name", ["BertTokenizer", "PreTrainedTokenizerFast"])
def test_a_class_that_would_build_another_tokenizer_is_refused(tmp_path, made, name):
    """Transformers' classes build their parts anew, without what else the file says of them."""
    values = json.loads((made("wordpiece") / "tokenizer.json").read_text())
    digits = {"type": "Digits", "individual_digits": True}
    values["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [values["pre_tokenizer"], digits],
    }
    vocabulary = values["model"]["vocab"]
    vocabulary |= {
        digit: len(vocabulary) + i for i, digit in enumerate("02") if digit not in vocabulary
    }
    place = tmp_path / "own"
    place.mkdir()
    (place / "tokenizer.json").write_text(json.dumps(values))
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    config = PretrainedTokenizer(location=str(place))
    if name == "BertTokenizer":
        with pytest.raises(DataError, match=r"BertTokenizer, which cuts .* otherwise than"):
            config.build(tmp_path / "t", Path, texts)
        assert not (tmp_path / "t").exists()
    else:
        config.build(tmp_path / "t", Path, texts)
        assert tokenizer_sha256(tmp_path / "t") == tokenizer_sha256(place)


def test_one_that_cannot_be_converted_is_named(tmp_path):
    place = slow(tmp_path / "slow", "ByT5Tokenizer")
    with pytest.raises(DataError, match="ByT5Tokenizer has no fast form"):
        PretrainedTokenizer(location=str(place)).build(tmp_path / "t", Path, texts)


def test_what_is_a_place_and_what_a_name(tmp_path, monkeypatch):
    """A slip in a path must not become a look-up on the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()

    def located(location):
        msg = f"nothing at {location}"
        raise DataError(msg)

    for location in ("models/mine", "./mine", "/no/where", "stage:data/tokenizer", "models"):
        config = PretrainedTokenizer(location=location)
        assert config.locations == (location,)
        with pytest.raises(DataError, match=f"nothing at {location}"):
            config.build(tmp_path / "t", located, texts)
    for location in ("bert-base-uncased", "google-bert/bert-base-uncased"):
        assert PretrainedTokenizer(location=location).locations == ()


def test_lines_lose_nothing_but_space():
    text = "a b\n\n" + "word " * 500 + "\tx▅y\n" + "z" * 2500
    found = list(lines([text]))
    assert max(map(len, found)) <= 1000
    removed = str.maketrans("", "", " \n\t▅")
    assert "".join(found).translate(removed) == text.translate(removed)


def test_a_sample_stays_the_same():
    every = [str(i) for i in range(5000)]
    first = list(sample(lambda: iter(every), 5000, 500))
    assert first == list(sample(lambda: iter(every), 5000, 500))
    assert 400 < len(first) < 600
    assert np.all(np.diff(np.array(first, int)) > 0)
    assert list(sample(lambda: iter(every), 5000, 5000)) == every
