"""Near duplicates: estimates are what they claim, and of each cluster the right text stays."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipeline.cleaning import NearDuplicates, near_duplicates
from data_pipeline.cleaning.letters import Letters

pytest.importorskip("rensa")
NEAR = NearDuplicates(ngram=3)


def words(rng, count, kinds=3000):
    return [f"w{n}" for n in rng.integers(0, kinds, count)]


def changed(rng, text, share):
    """A text with a share of its words replaced."""
    other = list(text)
    for place in rng.choice(len(text), int(share * len(text)), replace=False):
        other[place] = f"new{rng.integers(0, 10**9)}"
    return other


def shingles(text, ngram):
    return {tuple(text[i : i + ngram]) for i in range(max(1, len(text) - ngram + 1))}


def jaccard(one, two, ngram):
    a, b = shingles(one, ngram), shingles(two, ngram)
    return len(a & b) / len(a | b)


def estimates(texts, config):
    signatures = config.signatures([" ".join(text) for text in texts])
    return (signatures[:, None] == signatures[None]).mean(axis=2)


def test_estimates_agree_with_exact_similarity_and_with_datasketch():
    datasketch = pytest.importorskip("datasketch")
    rng = np.random.default_rng(0)
    base = words(rng, 400)
    texts = [
        base,
        *(changed(rng, base, share) for share in (0.01, 0.03, 0.08, 0.2)),
        words(rng, 90),
    ]
    config = NearDuplicates(ngram=3, permutations=512)
    ours = estimates(texts, config)
    theirs = []
    for text in texts:
        sketch = datasketch.MinHash(num_perm=512)
        sketch.update_batch(" ".join(s).encode() for s in shingles(text, 3))
        theirs.append(sketch)
    for i, one in enumerate(texts):
        for j, two in enumerate(texts):
            exact = jaccard(one, two, 3)
            # Five standard errors of an estimate from 512 permutations.
            bound = 5 * np.sqrt(exact * (1 - exact) / 512) + 1e-9
            assert abs(ours[i, j] - exact) <= bound
            assert abs(ours[i, j] - theirs[i].jaccard(theirs[j])) <= 2 * bound


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab \u7403。"), min_size=1, max_size=6), st.data())
def test_a_signature_depends_on_its_text_alone(texts, data):
    order = data.draw(st.permutations(range(len(texts))))
    together = NEAR.signatures(texts)
    again = NEAR.signatures([texts[i] for i in order])
    assert np.array_equal(together[order], again)
    assert np.array_equal(NEAR.signatures(texts[:1])[0], together[0])


def test_seeds_give_other_hashes_and_signs_do_not_count():
    text = "one two three four five"
    assert np.array_equal(*NEAR.signatures([text, "One, two — three\nfour FIVE!"]))
    other = NearDuplicates(ngram=3, seed=2).signatures([text])
    assert not np.array_equal(NEAR.signatures([text]), other)


def greedy(similar):
    """The rule, by comparing all pairs."""
    found = []
    for one in range(len(similar)):
        near = [two for two in range(one) if found[two] < 0 and similar[one][two]]
        found.append(near[0] if near else -1)
    return found


def test_of_each_cluster_the_first_stays_as_comparing_all_pairs_says():
    rng = np.random.default_rng(3)
    texts = []
    for _ in range(30):
        base = words(rng, 120)
        texts += [base, *(changed(rng, base, share) for share in rng.uniform(0, 0.12, 6))]
    texts = [texts[i] for i in rng.permutation(len(texts))]
    config = NearDuplicates(ngram=2, threshold=0.7)
    signatures = config.signatures([" ".join(text) for text in texts])
    least = int(np.ceil(0.7 * 128))
    similar = (signatures[:, None] == signatures[None]).sum(axis=2) >= least
    found = near_duplicates([signatures], config)
    # A pair right at the threshold may meet in no band; such a text stays, or goes by another.
    agreeing = found == np.array(greedy(similar))
    assert agreeing.mean() > 0.97
    gone = np.flatnonzero(found >= 0)
    assert len(gone) > 60
    assert (found[gone] < gone).all()
    assert (found[found[gone]] == -1).all()
    assert similar[gone, found[gone]].all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 12), max_size=3))
def test_it_does_not_matter_how_texts_are_shared_out(seed, cuts):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**32, (12, 128), dtype=np.uint32)
    signatures = base[rng.integers(0, 4, 12)]
    signatures[rng.random((12, 128)) < 0.06] = 7
    parts = np.split(signatures, sorted(cuts))
    together = near_duplicates([signatures], NEAR)
    assert np.array_equal(near_duplicates(parts, NEAR), together)
    same = (signatures[:, None] == signatures[None]).sum(axis=2) >= 103
    assert all(same[one, two] for one, two in enumerate(together) if two >= 0)


def test_no_text_goes_by_a_chain():
    one = np.arange(128, dtype=np.uint32)
    two, three = one.copy(), one.copy()
    two[:20] += 1000
    three[:20] = two[:20]
    three[20:45] += 2000
    # One is like two, two like three, but one is unlike three.
    assert [(a == b).sum() for a, b in ((one, two), (two, three), (one, three))] == [108, 103, 83]
    found = near_duplicates([np.stack([one, two, three])], NearDuplicates(bands=32))
    assert found.tolist() == [-1, 0, -1]


def test_texts_that_are_out_already_count_for_nothing():
    signatures = np.repeat(np.arange(128, dtype=np.uint32)[None], 4, axis=0)
    kept = np.array([False, True, True, False])
    assert near_duplicates([signatures], NEAR, kept).tolist() == [-1, -1, 1, -1]
    assert near_duplicates([signatures[:0]], NEAR).tolist() == []
    assert near_duplicates([], NEAR).tolist() == []


def test_large_buckets_are_gone_through_once(monkeypatch):
    module = importlib.import_module("data_pipeline.cleaning.near_duplicates")
    monkeypatch.setattr(module, "_CHUNK", 100)
    rng = np.random.default_rng(5)
    signatures = np.repeat(rng.integers(0, 2**32, (2, 128), dtype=np.uint32), 700, axis=0)
    found = near_duplicates([signatures[:650], signatures[650:]], NEAR)
    assert found.tolist() == [-1] + [0] * 699 + [-1] + [700] * 699


def test_chinese_texts_are_compared_by_characters():
    text = (
        "机器学习是人工智能的一个分支，研究计算机怎样模拟或实现人类的学习行为以获取新的知识或技能"
    )
    other = "今天天气很好，我们一起去公园散步，看到了很多美丽的花朵和可爱的小动物，大家都非常开心"
    near = text.replace("怎样", "如何")
    config = NearDuplicates(threshold=0.6)
    found = near_duplicates([config.signatures([text, other, near])], config)
    assert found.tolist() == [-1, -1, 0]
    mixed = f"BERT 和 GPT: {text} with English words behind it, and some more of them"
    similar = mixed.replace("怎样", "如何")
    found = near_duplicates([config.signatures([mixed, text, similar])], config)
    assert found[2] == 0


def test_texts_without_words_are_near_to_their_equals_alone():
    signatures = NEAR.signatures(["!?", "…", "!?", "?!", "word", "word."])
    assert near_duplicates([signatures], NEAR).tolist() == [-1, -1, 0, -1, -1, 4]


def test_long_words_and_many_words_pass():
    rng = np.random.default_rng(1)
    long, other = ("".join(rng.choice(list("abcdefgh"), 100_000)) for _ in range(2))
    signatures = NEAR.signatures([long, long + "y", other, "one " * 200_000, f"{long} {long[:9]}"])
    assert near_duplicates([signatures], NEAR).tolist() == [-1, 0, -1, -1, 0]


def test_bands_leave_out_few_pairs_at_the_threshold():
    for threshold in (0.5, 0.7, 0.8, 0.9):
        config = NearDuplicates(threshold=threshold)
        missed = (1 - threshold**config.rows) ** (config.permutations // config.rows)
        assert missed <= 0.01
    assert NearDuplicates(bands=16).rows == 8


@pytest.mark.parametrize(
    "values",
    [{"threshold": 0}, {"threshold": 1.1}, {"bands": 200}, {"ngram": 0}, {"permutations": 8}],
)
def test_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(ValidationError):
        NearDuplicates(**values)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("aB1 é\u0301球天\u200d。_ß", max_size=30), min_size=1, max_size=5))
def test_letters_of_many_texts_are_those_of_each(texts):
    together = Letters.of(texts)
    for index, text in enumerate(texts):
        alone = Letters.of([text])
        low, high = together.bounds[index : index + 2]
        first, last = together.words[index : index + 2]
        assert together.codes[low:high].tolist() == alone.codes.tolist()
        assert (together.starts[first:last] - low).tolist() == alone.starts.tolist()
        assert together.single[first:last].tolist() == alone.single.tolist()
    begin = together.starts
    end = np.append(begin, len(together.codes))[1:]
    pieces = [together.window(*each) for each in zip(begin.tolist(), end.tolist(), strict=True)]
    hashes = together.hashes(begin, end).tolist()
    assert len({*zip(pieces, hashes, strict=True)}) == len(set(pieces)) == len(set(hashes))
