"""Text vectorization: every rule, every encoding by hand, files, and agreement with Keras on real reviews."""

import json
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.data import vectorize
from seqjax.data.vectorize import Rules, Vectorizer, fit

CATS = ["the cat, the mat", "The dog!", "a cat"]


@pytest.mark.parametrize(
    ("rules", "text", "tokens"),
    [
        (Rules(), "It's  a\tDOG-house.\n", ["its", "a", "doghouse"]),
        (Rules(lower=False, strip=False), "It's a DOG.", ["It's", "a", "DOG."]),
        (Rules(), "Élan … naïve", ["élan", "…", "naïve"]),
        (Rules(fold=True), "Élan “naïve” Straße — ﬁn", ["elan", "naive", "strasse", "fin"]),
        (Rules(fold=True, lower=False), "Ærø Œuvre", ["AEro", "OEuvre"]),
        (Rules(), "e\u0301lan CAFE\u0301 \u0130zmir", ["élan", "café", "i̇zmir"]),  # however it was typed
        (Rules(), "नमस्ते दुनिया สวัสดี", ["नमस्ते", "दुनिया", "สวัสดี"]),
        (Rules(characters=True), "한e\u0301", ["한", "é"]),
        (Rules(fold=True), "한국 がぎ क़िताब สวัสดี עִבְרִית ёлка", ["한국", "がぎ", "क़िताब", "สวัสดี", "עברית", "елка"]),
        (Rules(characters=True), "A b!", ["a", " ", "b"]),
        (Rules(ngrams=(1, 2)), "a b c", ["a", "b", "c", "a b", "b c"]),
        (Rules(ngrams=(3,)), "a b c d", ["a b c", "b c d"]),
        (Rules(ngrams=(2, 1)), "a", ["a"]),
        (Rules(), "", []),
        (Rules(ngrams=(1, 2)), "...", []),
        (Rules(), "日本 語", ["日本", "語"]),
    ],
)
def test_rules(rules, text, tokens):
    assert rules.check().tokens(text) == tokens


def test_stems():
    pytest.importorskip("Stemmer", reason="the Snowball stemmers are not installed: pip install 'seqjax[text]'")
    assert Rules(stem="english").check().tokens("Running dogs ran, happily") == ["run", "dog", "ran", "happili"]
    assert Rules(stem="french").check().tokens("continuellement") == ["continuel"]
    with pytest.raises(ValueError, match=r"stem must be one of arabic, .* got 'klingon'"):
        fit(CATS, rules=Rules(stem="klingon"))
    with pytest.raises(ValueError, match="characters have no stem"):
        fit(CATS, rules=Rules(stem="english", characters=True))


def test_the_most_frequent_tokens_come_first_and_ties_by_falling_code_points():
    assert fit(CATS).vocabulary == ("the", "cat", "mat", "dog", "a")
    assert fit(CATS, size=4).vocabulary == ("the", "cat")
    assert fit(CATS).frequencies == (2, 2, 1, 1, 1)  # texts, not tokens: "the" stands twice in the first
    assert fit(iter(CATS)) == fit(CATS)


def test_indices_end_in_the_mask_and_unknown_tokens_are_1():
    vectorizer = fit(CATS, size=4)
    np.testing.assert_array_equal(vectorizer.ints([*CATS, ""]), [[2, 3, 2, 1], [2, 1, 0, 0], [1, 3, 0, 0], [0] * 4])
    cut = vectorizer.ints(CATS, length=2)
    np.testing.assert_array_equal(cut, [[2, 3], [2, 1], [1, 3]])
    assert cut.dtype == np.int32
    assert vectorizer.ints([]).shape == (0, 0)
    assert vectorizer.ints([""], length=3).tolist() == [[0, 0, 0]]
    assert vectorizer.decode([2, 1, 3, 0, 0]) == "the [UNK] cat"
    assert fit(["abc"], rules=Rules(characters=True)).decode([4, 3, 2]) == "abc"


def test_ngrams_stand_at_the_word_that_they_end_at():
    rules = vectorize.Rules(ngrams=(1, 3, 2))
    fitted = vectorize.fit(["a b c a b"], rules=rules)
    found = fitted.aligned(["a b c", "b a", "", "a b c a b"], 4)
    names = [
        [[fitted.decode(step[step > 0][i : i + 1]) for i in range((step > 0).sum())] for step in row] for row in found
    ]
    assert names == [
        [["a"], ["b", "a b"], ["c", "a b c", "b c"], []],
        [["b"], ["a", "[UNK]"], [], []],
        [[], [], [], []],
        [["a"], ["b", "a b"], ["c", "a b c", "b c"], ["a", "b c a", "c a"]],
    ]
    np.testing.assert_array_equal(found[1, 1], [fitted.ints(["a"])[0, 0], vectorize.MASK, vectorize.UNKNOWN])
    assert fitted.aligned(["a b"], 1).shape == (1, 1, 3)
    assert not fitted.aligned(["a b"], 1)[..., 1:].any()
    assert fitted.aligned([], 2).shape == (0, 2, 3)
    np.testing.assert_array_equal(fitted.aligned((text for text in ["a b c", "b a"]), 4), found[:2])
    with pytest.raises(TypeError, match="expected texts, got a single str: put it in a list"):
        fitted.aligned("a b", 4)
    for length in (0, -1):
        with pytest.raises(ValueError, match=f"length must be at least 1, got {length}"):
            fitted.aligned(["a b"], length)


def test_bags_by_hand():
    vectorizer = fit(CATS, size=4)
    count = vectorizer.count([*CATS, ""])
    np.testing.assert_array_equal(count.toarray(), [[0, 1, 2, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0] * 4])
    np.testing.assert_array_equal(vectorizer.multi_hot(CATS).toarray(), [[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 1]])
    known = np.log(1 + 3 / (1 + 2))
    np.testing.assert_allclose(vectorizer.idf, [0, known, known, known], rtol=1e-6)
    rare = fit(CATS)
    mean = (2 * np.log(1 + 3 / 3) + 3 * np.log(1 + 3 / 2)) / 5
    np.testing.assert_allclose(rare.idf, [0, mean, np.log(2), np.log(2), *[np.log(2.5)] * 3], rtol=1e-6)
    np.testing.assert_allclose(rare.tf_idf(["the cat the x"]).toarray()[0, 1:4], [mean, 2 * np.log(2), np.log(2)])
    assert {bags.dtype for bags in (count, vectorizer.tf_idf(CATS))} == {np.dtype(np.float32)}
    assert vectorizer.count([]).shape == (0, 4)


def test_one_hot_has_a_one_at_each_token():
    vectors = fit(CATS, size=4).one_hot(["the cat x"], length=4)
    np.testing.assert_array_equal(vectors, [[[0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]])


texts = st.lists(st.text(max_size=12), max_size=6)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(train=texts, other=texts, size=st.none() | st.integers(3, 9), characters=st.booleans(), n=st.integers(1, 3))
def test_any_text_survives_a_file_and_what_is_known_comes_back(tmp_path_factory, train, other, size, characters, n):
    rules = Rules(characters=characters, ngrams=(1, n) if n > 1 else (1,), strip=False, fold=n == 2)
    if not any(rules.tokens(text) for text in train):
        with pytest.raises(ValueError, match=f"a vocabulary needs at least one token, got none in {len(train)} texts"):
            fit(train, size=size, rules=rules)
        return
    vectorizer = fit(train, size=size, rules=rules)
    path = tmp_path_factory.mktemp("files") / "vectorizer.json"
    vectorizer.save(path)
    loaded = vectorize.load(path)
    assert loaded == vectorizer
    ints = loaded.ints(other)
    for row, text in zip(ints, other, strict=True):
        tokens = rules.tokens(text)
        names = ["", "[UNK]", *vectorizer.vocabulary]
        assert [names[i] for i in row] == [
            *(token if token in vectorizer.vocabulary else "[UNK]" for token in tokens),
            *[""] * (len(row) - len(tokens)),
        ]
    np.testing.assert_array_equal(loaded.count(other).sum(1), [len(rules.tokens(text)) for text in other])


def test_a_huge_text():
    vectorizer = fit(["word " * 1_000_000 + "x"], size=3)
    assert vectorizer.ints(["word " * 1_000_000], length=5).tolist() == [[2] * 5]
    assert vectorizer.count(["word " * 1_000_000]).toarray().tolist() == [[0, 0, 1_000_000]]


def test_errors(tmp_path):
    with pytest.raises(TypeError, match="expected texts, got a single str: put it in a list"):
        fit("a b")
    with pytest.raises(TypeError, match=r"text 1 is a bytes, expected a str \(decode bytes first\)"):
        fit(CATS).ints(["a", b"b"])
    with pytest.raises(ValueError, match="a vocabulary needs at least one token, got none in 2 texts"):
        fit(["", "!"])
    with pytest.raises(ValueError, match=r"size must be at least 3.*got 2"):
        fit(CATS, size=2)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        fit(CATS).ints(CATS, length=0)
    for ngrams in ((), (0,), (2, 2)):
        with pytest.raises(ValueError, match="ngrams must be distinct lengths of at least 1"):
            fit(CATS, rules=Rules(ngrams=ngrams))
    for tokens, message in (([7], r"in range\(7\), got 7"), ([-1], r"in range\(7\), got -1"), ([[2]], r"shape \[N\]")):
        with pytest.raises(ValueError, match=f"tokens must .*{message}"):
            fit(CATS).decode(tokens)
    with pytest.raises(TypeError, match="tokens must be integers, got float64"):
        fit(CATS).decode([2.7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("rules"), "KeyError: 'rules'"),
        (lambda content: content["frequencies"].pop(), "5 tokens with 4 frequencies"),
        (lambda content: content["vocabulary"].__setitem__(1, content["vocabulary"][0]), "duplicate token"),
        (lambda content: content["rules"].update(color=1), "unexpected keyword argument 'color'"),
        (lambda content: content["rules"].update(ngrams=[0]), "ngrams must be"),
        (lambda content: content["frequencies"].__setitem__(0, 1.5), "must be nonnegative integers"),
        (lambda content: content["frequencies"].__setitem__(0, float("inf")), "Infinity is not JSON"),
        (lambda content: content["frequencies"].__setitem__(0, "3"), "must be nonnegative integers"),
        (lambda content: content.update(frequencies=3), "TypeError: 'int' object is not iterable"),
        (lambda content: content.update(documents=None), "must be nonnegative integers"),
        (lambda content: content.update(rules=[1]), "TypeError: "),
    ],
)
def test_a_file_that_holds_something_else(tmp_path, change, message):
    path = tmp_path / "vectorizer.json"
    fit(CATS).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"vectorizer.json: .*{message}"):
        vectorize.load(path)
    path.write_text('{"rules"')
    with pytest.raises(ValueError, match=r"vectorizer.json: not JSON: "):
        vectorize.load(path)
    with pytest.raises(FileNotFoundError):
        vectorize.load(tmp_path / "gone.json")


@pytest.mark.parametrize("ngrams", [None, 2])
@pytest.mark.parametrize("mode", ["int", "multi_hot", "count", "tf_idf"])
def test_keras_gives_the_same_numbers(data_dir, mode, ngrams):
    pytest.importorskip("tensorflow", reason="Keras's TextVectorization needs TensorFlow, which is not installed")
    keras = pytest.importorskip("keras")
    with tarfile.open(data_dir / "imdb" / "aclImdb_labelled.tar.gz") as archive:
        members = [m for m in archive if m.name.startswith("aclImdb/test/neg/")][:1000]
        reviews = [archive.extractfile(m).read().decode() for m in members]
    # Keras knows the capitals and the white space of ASCII alone.
    ascii_only = [" ".join(review.lower().split()) for review in reviews]
    layer = keras.layers.TextVectorization(
        max_tokens=2000 if mode == "int" else 1999,  # its bags have no column for the mask
        output_mode=mode,
        ngrams=ngrams,
        output_sequence_length=600 if mode == "int" else None,
    )
    layer.adapt(ascii_only)
    vectorizer = fit(reviews, size=2000, rules=Rules(ngrams=(1, 2) if ngrams else (1,)))
    got = vectorizer.ints(reviews, 600) if mode == "int" else getattr(vectorizer, mode)(reviews).toarray()[:, 1:]
    np.testing.assert_allclose(got, np.asarray(layer(ascii_only)), rtol=1e-6)


def test_the_vectorizer_is_plain_data():
    assert fit(CATS) == Vectorizer(Rules(), ("the", "cat", "mat", "dog", "a"), (2, 2, 1, 1, 1), 3)
